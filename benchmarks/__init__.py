"""Measurements that print a table and draw a plot; nothing here runs in production."""
