"""Serving under faults: what is published, who asks, what breaks, and what was seen.

`faults` breaks things on a `stage`: Redis, a `wire` to it, gunicorn; `befall` sees
it through. `clients` ask without pause, as `asking` says, and hold every answer
against `lists`, which knows what each user must get of each run; `load`
collects what they saw, and `report` sums it up.
"""
