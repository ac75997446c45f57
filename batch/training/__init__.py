"""Training: from the loaded data to a saved model."""
