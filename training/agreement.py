"""Checks that the processes of a training run agree before its first step."""

import hashlib
from collections.abc import Mapping

from dataloader.file_list import FileList
from utils import distributed
from utils.agreement import check_alike
from utils.files import file_hash


def check_agree(
    options: Mapping[str, object], lists: Mapping[str, FileList | None], class_names: list[str] | None, teacher: str
) -> None:
    """Compare what the processes of a run were given; call it before the first step.

    The first process reads --load for all of them.

    Args:
        options: by name.
        lists: by name, or None.
        teacher: the path of --teacher, or "".

    Raises:
        UserError: in every process, if they differ; it names what differs, with the value in each process.
    """
    if distributed.world_size() == 1:
        return
    more = {
        f"the {name} list": files.fingerprint()[:12] if files is not None else "none" for name, files in lists.items()
    }
    names = "\n".join(class_names or ()).encode(errors="surrogateescape")
    more["the names of classes.txt"] = hashlib.sha256(names).hexdigest()[:12]
    more["the teacher's file"] = file_hash(teacher)[:12] if teacher else "none"
    check_alike(options, more)
