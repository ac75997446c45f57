"""The HTTP side: answers from the lists the batch published, one Redis lookup a request.

`app` puts it together: `feed_routes` and `operator_routes`, `guard` and `observe` for
what every request passes. `lists` holds the lookup, `state`, `texts`, `read_state` and
`refresh` what is kept in memory, `answer` the pure decision of what to answer.
"""
