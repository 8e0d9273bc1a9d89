"""`python -m tools.folds`."""

import sys

from tools.folds.command import main

if __name__ == "__main__":
    sys.exit(main())
