"""`python -m batch`."""

import os
import sys

# Threads that wait by spinning starve each other as soon as the machine does anything else beside:
# training took up to six times as long. Must be set before LightGBM is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

try:
    from batch.cli import main
except OSError as error:
    sys.exit(f"error: LightGBM cannot be loaded: {error}; on Debian and Ubuntu: apt-get install libgomp1")

if __name__ == "__main__":
    main()
