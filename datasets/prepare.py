"""Make the lists: `python datasets/prepare.py --help`. The code is in tools/prepare/."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.prepare.command import main

if __name__ == "__main__":
    sys.exit(main())
