"""The HTTP API: answers from the lists that the batch published, with one Redis GET a request.

`app` wires it together. A request passes `auth` and `telemetry`, then `routes` (Flask),
`handlers` (arguments to answer fields) and `service` (the GET and its fallback).
`recommend` decides, without I/O, what to answer. `state` is what a worker keeps in
memory; `read_state` and `refresher` keep it fresh. `tuned` holds what is there for
speed, or against slow clients: the answers are the same without it.
"""

METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""Environment variable with the folder that workers count into; read by prometheus_client on import."""
