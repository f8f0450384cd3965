"""`python -m cluster_dash_server`."""

import sys

from cluster_dash_server.cli import main

sys.exit(main())
