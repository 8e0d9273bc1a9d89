"""Results of runs that outlive an interruption of a benchmark, in <out>/runs.json."""

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import write_json


class KeptRuns:
    """What has been measured, by name (`done`), and with what (`about`); both as JSON gives them back."""

    def __init__(self, out: Path, about: Mapping[str, Any], resume: bool) -> None:
        """Read what an earlier call has measured, if `resume`.

        Raises:
            UserError: there is something, without `resume`; or it was measured with something else.
        """
        self.file = out / "runs.json"
        self.about: dict[str, Any] = json.loads(json.dumps(about))
        self.done: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()
        if not self.file.is_file():
            return
        if not resume:
            raise UserError(f"{self.file} has the runs of an earlier call. Try: --resume, or another --out")
        kept = json.loads(self.file.read_text())
        differ = [name for name in about if kept["about"].get(name) != self.about[name]]
        if differ or kept["about"].keys() != self.about.keys():
            changed = ", ".join(differ or sorted(kept["about"].keys() ^ self.about.keys()))
            raise UserError(f"--resume: {self.file} was measured with another {changed}. Try: another --out")
        self.done = kept["done"]

    def add(self, name: str, result: Mapping[str, Any]) -> None:
        """Keep the result of one run, in memory and on the disk; threads may call it."""
        with self._lock:
            self.done[name] = dict(result)
            write_json(self.file, {"about": self.about, "done": self.done})
