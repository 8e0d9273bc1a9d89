"""YAML as text: a value is what was written, and no guess at its type.

YAML 1.1 makes 83 of `0123`, 1.1 of `1.10`, True of `on`. Here each value stays text, and whoever knows its type reads it.
"""

import os
from typing import Any

MAX_BYTES = 1_000_000  # options, members and ranges are a few lines
MAX_DEPTH = 10
NOTHING = ("", "~", "null", "Null", "NULL")  # unquoted


class YamlError(ValueError):
    """A file that is no YAML, or more than plain values; the message is one line."""


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """Return the content of a YAML file as dicts and lists of text; None for what is left empty or null.

    Raises:
        OSError: there is no such file, or it cannot be read.
        YamlError: it is no YAML in UTF-8, holds an alias, a tag or the same key twice, is nested too deeply, or too long.
    """
    import yaml  # the one import here that is not the standard library's: only who asks for a file pays for it

    with open(path, "rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise YamlError(f"it has more than {MAX_BYTES:,} bytes, so it is no file of options")
    try:
        return _construct(yaml.compose(content.decode("utf-8-sig"), Loader=_loader()))
    except UnicodeDecodeError as error:
        raise YamlError(f"it is not UTF-8 text ({error})") from None
    except yaml.YAMLError as error:
        raise YamlError(" ".join(str(error).split())) from None


def _loader() -> Any:
    """A loader that refuses aliases (a kilobyte of them is a gigabyte of content) and deep nesting, before it builds any."""
    import yaml

    class Loader(yaml.BaseLoader):
        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.composer.ComposerError(
                    None, None, "aliases are not allowed; write the value again", self.peek_event().start_mark
                )
            if self.depth >= MAX_DEPTH:
                raise yaml.composer.ComposerError(
                    None, None, f"nested deeper than {MAX_DEPTH} levels", self.peek_event().start_mark
                )
            self.depth += 1
            try:
                return super().compose_node(parent, index)
            finally:
                self.depth -= 1

    return Loader


def _construct(node: Any) -> Any:
    import yaml

    if node is None:
        return None
    if node.tag.rpartition(":")[2] not in ("str", "seq", "map") or not node.tag.startswith("tag:yaml.org,2002:"):
        raise YamlError(f"the tag {node.tag} is not allowed; write the value alone{_place(node)}")
    if isinstance(node, yaml.ScalarNode):
        return None if node.style is None and node.value in NOTHING else node.value
    if isinstance(node, yaml.SequenceNode):
        return [_construct(one) for one in node.value]
    found: dict[str, Any] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise YamlError(f"a name must be text{_place(key)}")
        if key.value in found:
            raise YamlError(f"{key.value!r} stands there twice{_place(key)}")
        found[key.value] = _construct(value)
    return found


def _place(node: Any) -> str:
    return f" (line {node.start_mark.line + 1})"
