"""Clean a list by decisions from the report: `python datasets/clean.py --help`. The code is in tools/prepare/."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.prepare.clean import main

if __name__ == "__main__":
    sys.exit(main())
