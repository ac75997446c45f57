"""What pages show, without routes: what is read from the stores, and tables and drawings made of it."""
