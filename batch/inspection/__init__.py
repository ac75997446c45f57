"""Inspection for operators: a user's list, two lists compared, one score explained."""
