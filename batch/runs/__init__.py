"""Which runs there are, in which state, and that only one is made at a time."""
