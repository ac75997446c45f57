"""Searches for better parameters of the forest."""
