"""`python -m tools.average`."""

import sys

from tools.average.command import main

if __name__ == "__main__":
    sys.exit(main())
