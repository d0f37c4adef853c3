"""Attributes set to other values for a while: how the checks watch a run that knows nothing of them."""

import contextlib
from collections.abc import Iterator
from typing import Any

ABSENT = object()


@contextlib.contextmanager
def replaced(owner: Any, **values: Any) -> Iterator[None]:
    """Other values for attributes of a module or class; what was there is back after the block, however it ends."""
    before = {name: vars(owner).get(name, ABSENT) for name in values}
    try:
        for name, value in values.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in before.items():
            if value is not ABSENT:
                setattr(owner, name, value)
            elif name in vars(owner):
                delattr(owner, name)  # a class had inherited it
