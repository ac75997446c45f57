"""Everything on one machine: embedded servers, networks to load, and a conductor.

Nothing outside `demo` and the tests imports this package.
"""
