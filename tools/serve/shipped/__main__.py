"""Serve the exported model in a folder: `python -m serve` beside its predict.py."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from .settings import add_flags, settings_of


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and serve; return the exit code."""
    parser = argparse.ArgumentParser("serve", description="Serve an exported model over HTTP, with a page to try it.")
    here = Path(__file__).resolve().parent.parent
    parser.add_argument("--folder", type=Path, default=here, help="the exported folder; by default the one of this")
    parser.add_argument("--threads", type=int, default=0, help="of the runtime; 0: its own choice")
    add_flags(parser)
    opt = parser.parse_args(argv)
    if opt.threads < 0:
        parser.error(f"--threads is {opt.threads}; allowed: from 0 on")
    try:
        settings = settings_of(opt)
    except ValueError as error:
        parser.error(str(error))
    try:
        from .run import bind, serve
        from .served import ExportedModel

        place = bind(settings)
        model = ExportedModel(opt.folder, opt.folder.resolve().name, settings.max_pixels, opt.threads)
        place.listen()  # here, for another server may have taken the port while the model was loaded
    except ModuleNotFoundError as error:
        print(f"{error}\nTry: pip install -r requirements.txt -r requirements-serve.txt", file=sys.stderr)
        return 2
    except ValueError as error:  # predict.DamagedModelError, of the folder's own module
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"--host {settings.host} --port {settings.port}, --folder {opt.folder}: {error}", file=sys.stderr)
        return 2
    return serve([model], settings, place, lambda text: print(text, flush=True))


if __name__ == "__main__":
    sys.exit(main())
