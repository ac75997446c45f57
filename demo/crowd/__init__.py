"""A crowd: simulated people with hidden preferences, who use the demo's network over HTTP."""
