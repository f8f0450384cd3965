"""Start the mole as the first version was started: `python smart_startup.py [-c FILE]`."""

import sys

from cluster_dash_mole.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
