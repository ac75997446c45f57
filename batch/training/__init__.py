"""From what was read to a trained model."""
