"""The checks of `python -m batch doctor`: they read and compare, and change nothing."""
