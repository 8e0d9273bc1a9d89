"""The options that a script has parsed."""

import argparse
from typing import NoReturn, TypeVar

Some = TypeVar("Some", bound=argparse.Namespace)


def flag_text(name: str, value: object) -> str:
    """Return the option as it is typed: `--lr 0.1`, `--fit_head`, `--no-fit_head`."""
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name} {value:g}" if isinstance(value, float) else f"--{name} {value}"


class Options(argparse.Namespace):
    """Options as attributes, read-only after `make_read_only`; `opt.replace(scale=128)` returns a changed copy.

    train.py takes such a copy when a checkpoint is resumed, when the lists are open (classes, batch size), and when
    defaults are chosen and the length is known (epochs). `opt.given` still names what the user gave.
    """

    __slots__ = ("_frozen",)  # not in __dict__: vars(opt) holds the options alone

    def make_read_only(self) -> "Options":
        """Refuse every later change of an attribute; return self."""
        object.__setattr__(self, "_frozen", True)
        return self

    def replace(self, **changes: object) -> "Options":
        """Return a copy with `changes`, read-only if this is. Raises AttributeError for a name that is no option."""
        unknown = [name for name in changes if name not in vars(self)]
        if unknown:
            raise AttributeError(f"there is no option {', '.join(unknown)}")
        return changed(self, **changes)

    def __setattr__(self, name: str, value: object) -> None:
        if getattr(self, "_frozen", False):
            self._refuse(name)
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if getattr(self, "_frozen", False):
            self._refuse(name)
        super().__delattr__(name)

    def _refuse(self, name: str) -> NoReturn:
        raise AttributeError(f"options are read-only: take opt.replace({name}=…), a changed copy")


def changed(opt: Some, **changes: object) -> Some:
    """Return a copy of options of any kind with `changes`, read-only if `opt` is; a name may be new to them."""
    copy = type(opt)(**{**vars(opt), **changes})
    if isinstance(copy, Options) and getattr(opt, "_frozen", False):
        copy.make_read_only()
    return copy
