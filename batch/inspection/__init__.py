"""What operators look at: a user's list, two lists side by side, one score in its parts."""
