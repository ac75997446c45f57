"""The demo's social network: people, posts, communities and messages, with a feed from serving.

It asks serving over HTTP for lists, as any client does, and Postgres for everything else. What people do is
written to tables that the views of `recs` read, so the night and the refresh learn from it.
"""
