"""Hyperparameter search for the forest."""
