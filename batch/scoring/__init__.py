"""Scores every user with every post exactly, without walking a tree for each pair."""
