"""Tells people that a night went wrong: what is said, and how it gets to them."""
