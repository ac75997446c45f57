"""Alerts to a webhook: what they contain, and how they are delivered."""
