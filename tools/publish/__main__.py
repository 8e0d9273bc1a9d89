"""`python -m tools.publish`."""

import sys

from tools.publish.command import main

if __name__ == "__main__":
    sys.exit(main())
