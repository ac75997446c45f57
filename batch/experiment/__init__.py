"""The A/B test: who is in which variant, who changed that, who was served what, and which is better."""
