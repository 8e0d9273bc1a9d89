"""YAML whose values stay text, as written.

YAML 1.1 reads `0123` as 83, `1.10` as 1.1 and `on` as True. Here the caller, who knows the type, converts each value.
"""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import yaml

MAX_BYTES = 1_000_000
MAX_DEPTH = 10
NOTHING = ("", "~", "null", "Null", "NULL")  # unquoted


class YamlError(ValueError):
    """Raised for a file that is not YAML or holds more than plain values; the message is one line."""


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """Return the content of a YAML file as dicts and lists of text; None for an empty or null value.

    Raises:
        OSError: the file does not exist or cannot be read.
        YamlError: the file is not YAML in UTF-8, has an alias, a tag or a key twice, or is too deep or too long.
    """
    import yaml  # not in the standard library: imported only where a file is read

    with open(path, "rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise YamlError(f"it has more than {MAX_BYTES:,} bytes; a file of options is smaller")
    try:
        return _construct(yaml.compose(content.decode("utf-8-sig"), Loader=_loader()))
    except UnicodeDecodeError as error:
        raise YamlError(f"it is not UTF-8 text ({error})") from None
    except yaml.YAMLError as error:
        raise YamlError(" ".join(str(error).split())) from None


def _loader() -> "type[yaml.BaseLoader]":
    """Return a loader that refuses deep nesting, and aliases: a kilobyte of them expands to a gigabyte."""
    import yaml

    class Loader(yaml.BaseLoader):
        depth = 0

        def compose_node(self, parent: "yaml.Node | None", index: int) -> "yaml.Node | None":
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


def _construct(node: "yaml.Node | None") -> Any:
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
            raise YamlError(f"{key.value!r} appears twice{_place(key)}")
        found[key.value] = _construct(value)
    return found


def _place(node: "yaml.Node") -> str:
    return f" (line {node.start_mark.line + 1})"
