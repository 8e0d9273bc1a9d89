"""utils.files: what is read belongs together, also where another process replaces it meanwhile."""

import os

from utils.files import file_hash, read_hashed


def test_hash_is_of_the_file_that_was_read_last(tmp_path):
    path, newer = tmp_path / "best.pt", tmp_path / "newer.pt"
    path.write_text("first")
    newer.write_text("later")

    def read():
        content = path.read_text()
        if newer.exists():  # a run replaces it while it is read, once
            os.replace(newer, path)
        return content

    assert read_hashed(path, read) == ("later", file_hash(path))
    assert read_hashed(tmp_path / "none", lambda: 1) == (1, "")
    assert read_hashed(tmp_path, lambda: 2) == (2, "")
