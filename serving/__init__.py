"""The HTTP side: answers from the lists the batch published, one Redis lookup a request.

`app` holds the routes, `lists` the lookup, `state`, `read_state` and `refresh` the
small state kept in memory, `answer` the pure decision of what to answer.
"""
