"""Makes an exported folder serve itself: the server beside predict.py, its requirements, and a Dockerfile."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from tools.serve.shipped.served import is_exported
from utils.errors import UserError
from utils.files import atomic_write
from utils.logger import log
from utils.outputs import Output, check
from utils.whole_folder import whole_folder

REQUIREMENTS = ("fastapi", "uvicorn", "python-multipart", "prometheus-client")
COMMAND = ("python", "-m", "serve", "--host", "0.0.0.0", "--port", "8000")
PROBE = "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health/ready')"
DOCKERFILE = """\
# docker build -t classifier .
# docker run --rm -p 8000:8000 classifier
FROM python:3.11-slim
WORKDIR /model
COPY requirements.txt requirements-serve.txt ./
RUN pip install --no-cache-dir -r requirements.txt -r requirements-serve.txt
COPY . .
# The image is built only if its packages give the probabilities of eval.py.
RUN python predict.py --check
USER nobody
EXPOSE 8000
HEALTHCHECK --start-period=30s CMD {probe}
CMD {command}
"""


def write_dockerfile(folder: Path, force: bool = False) -> None:
    """Add serve/, requirements-serve.txt, Dockerfile and .dockerignore to a folder of tools.export.

    Args:
        force: replace files of these names whose text is another one.

    Raises:
        UserError: it is no such folder, or a file of these names has another text and not `force`.
    """
    if not is_exported(folder):
        raise UserError(
            f"--dockerfile {folder} is no folder that tools.export wrote.\n"
            f"Try: python -m tools.export --load checkpoints/<tag>/best.pt --out {folder}"
        )
    texts = {
        "requirements-serve.txt": "".join(f"{name}\n" for name in REQUIREMENTS),
        ".dockerignore": "**/__pycache__\n",
        "Dockerfile": DOCKERFILE.format(probe=_words(("python", "-c", PROBE)), command=_words(COMMAND)),
    }
    planned = [Output(folder / name, f"the {name} of tools.serve", _is_text(text)) for name, text in texts.items()]
    check(planned, {}, force=force)
    shipped = Path(__file__).parent / "shipped"
    with whole_folder(folder / "serve", keep=lambda name: name) as new:
        for source in (*shipped.glob("*.py"), shipped / "page.html"):
            shutil.copyfile(source, new / source.name)
    for name, text in texts.items():
        with atomic_write(folder / name, "w") as file:
            file.write(text)
    log.info(f"Written: {folder}/serve/, {', '.join(texts)}\nNext: docker build -t classifier {folder}")


def _is_text(text: str) -> Callable[[Path], bool]:
    """Return a function that returns whether a file holds exactly this text."""
    return lambda path: path.read_bytes() == text.encode()


def _words(words: tuple[str, ...]) -> str:
    """Return a command as a Dockerfile takes it: JSON, so that the process gets signals itself, without a shell."""
    return json.dumps(list(words))
