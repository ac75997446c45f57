"""`python -m batch`."""

import os

# Threads that wait by spinning starve each other as soon as the machine does anything else beside:
# training took up to six times as long. Must be set before LightGBM is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from batch.cli import main

if __name__ == "__main__":
    main()
