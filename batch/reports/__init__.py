"""The page that each run writes for people to look at."""
