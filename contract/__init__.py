"""What batch and serving must agree on: settings, keys, codec, experiment, errors.

Nothing here imports pandas, LightGBM, SQLAlchemy or Flask, so that either side
can import all of it.
"""
