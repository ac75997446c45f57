"""The commands of `python -m batch`, and how they print."""
