"""The A/B test: who is in which variant, who changed that, and who was served what."""
