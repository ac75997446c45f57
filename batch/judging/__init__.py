"""Judges models on labels they have not learnt from."""
