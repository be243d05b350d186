"""`python -m edgemin_utils` is the console command `edgemin`."""

import sys

from edgemin_utils.cli import main

if __name__ == "__main__":
    sys.exit(main())
