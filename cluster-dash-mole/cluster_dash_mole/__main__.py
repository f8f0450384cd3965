"""`python -m cluster_dash_mole` is the command `cluster-dash-mole`."""

import sys

from cluster_dash_mole.cli import main

if __name__ == "__main__":
    sys.exit(main())
