"""`python -m tools.compare`."""

import sys

from tools.compare.command import main

if __name__ == "__main__":
    sys.exit(main())
