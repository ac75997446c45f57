"""Starts the night at its hour, once, whatever happened to the machine in between."""
