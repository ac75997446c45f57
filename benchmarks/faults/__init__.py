"""Serving under faults: a test bed, the faults, clients that check every answer, and a report.

`environment` runs Redis, a `tcp_proxy` to it and gunicorn; `faults` injects and
reverts faults; `run_fault` runs one and measures the recovery. `clients` send
requests without pause; `checking_client` compares every answer with
`synthetic_lists`, which computes what each user must get from each run. `load`
collects the answers, and `report` summarises them.
"""
