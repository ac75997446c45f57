"""The demo: embedded servers, simulated and real networks, and one command that runs everything.

Nothing outside `demo` and the tests imports this package.
"""
