"""`python -m batch`."""

import os

from batch.cli import main

# Threads that wait by spinning starve each other as soon as the machine does anything else beside:
# training took up to six times as long. Must be set before LightGBM is loaded, which commands do.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

if __name__ == "__main__":
    main()
