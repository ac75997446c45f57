"""What batch and serving share: settings, keys, codec, experiment, errors.

Nothing here imports pandas, LightGBM, SQLAlchemy or Flask, so batch and serving
can import all of it.
"""
