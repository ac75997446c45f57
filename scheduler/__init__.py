"""Runs the night on schedule, once for any number of due times missed while the machine was off."""
