"""Run a script that keeps predictions in files and holds no member's probabilities, as with very many classes.

python little_memory.py eval.py ...
"""

import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

if __name__ == "__main__":
    from inference import row_store, saved_probs

    row_store.MAX_ROW_VALUES = 0
    if "--save_probs" not in sys.argv:
        saved_probs.MAX_BYTES = 0
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
