"""`python -m tools.export`."""

import sys

from tools.export.command import main

if __name__ == "__main__":
    sys.exit(main())
