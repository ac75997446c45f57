"""What stands between a written run and going live: rules over what was measured of it."""
