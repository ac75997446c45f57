"""Optional parts, for speed or against slow clients: without them the answers are the same."""
