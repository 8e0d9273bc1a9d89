"""`python -m tools.serve`."""

import sys

from tools.serve.command import main

if __name__ == "__main__":
    sys.exit(main())
