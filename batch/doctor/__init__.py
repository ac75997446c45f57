"""What `python -m batch doctor` examines: it reads, compares and advises, and changes nothing."""
