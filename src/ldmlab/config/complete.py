"""Parts against their constructors: each node with a `_target_` is checked and its defaults are written out.

A part from outside the package is treated like one of ours: `Annotated[float, Range(…)]` on a parameter bounds an option,
`Annotated[int, Given]` marks an argument that follows from other parts and is no option (ldmlab/ranges.py).
"""

import functools
import inspect
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from ldmlab.config.search import line_of, listed, option_file, shown
from ldmlab.config.values import complaint, declared_number, nearest, say
from ldmlab.errors import ConfigError
from ldmlab.ranges import Given


@dataclass(frozen=True)
class Origin:
    """Where options come from: the group options that were chosen, the paths that were typed, the words for the search path."""

    choices: dict[str, str]
    typed: frozenset[str] = frozenset()
    words: tuple[str, ...] = ()

    def place(self, path: str) -> str:
        """How to go on with an option that does not fit: leave it out when it was typed, else the file and line that set it."""
        parent, _, key = path.rpartition(".")
        top = path.split(".")[0]
        found = ""
        for group in [parent.replace(".", "/"), *sorted(g for g in self.choices if g.split("/")[0] == top)]:
            file = option_file(group, self.choices.get(group, ""), self.words)
            if file is not None and (line := line_of(file, key)) is not None:
                found = f"{shown(file)}, line {line}"
                break
        if any(word == path or word.startswith(f"{path}.") for word in self.typed):
            return f" Leave it out for the value in {found}." if found else " Leave it out for its default."
        return f" Set in {found}." if found else " Correct the yaml that sets it."


def complete(node: Any, path: str, origin: Origin) -> None:
    """Check and complete every part at or below `node`, in place. Raises ConfigError."""
    if not isinstance(node, (DictConfig, ListConfig)) or node._is_none():
        return
    if isinstance(node, DictConfig):
        for key in node:
            if OmegaConf.is_missing(node, key):
                where = f"{path}.{key!s}".lstrip(".")
                raise ConfigError(f"{where} is not set. Give it as {where}=… or choose a group option that sets it.")
        if "_target_" in node:
            _complete_part(node, path, origin)
    keys: Iterable[Any] = list(node) if isinstance(node, DictConfig) else range(len(node))
    for key in keys:
        complete(node[key], f"{path}.{key}".lstrip("."), origin)


def _complete_part(part: DictConfig, path: str, origin: Origin) -> None:
    """Check one part's options against the constructor that takes them, and write its defaults out."""
    name = part["_target_"]
    if not isinstance(name, str):
        raise ConfigError(
            f"{path}._target_ must be the dotted name of a class or function; got {say(name)}. "
            f"Choose the part with its group: {path.replace('.', '/')}=… or {path.split('.')[0]}=…."
        )
    takes, hints = signature(name, path)
    options = {key: parameter for key, parameter in takes.items() if not is_given(hints.get(key))}
    for key in [str(k) for k in part if not str(k).startswith("_")]:
        where = f"{path}.{key}"
        if key not in options:
            offered = [n for n in options if n in part or options[n].default is not inspect.Parameter.empty]
            hint = nearest(key, offered)
            raise ConfigError(f"{where}: no such option.{hint} {name} takes: {listed(offered)}.{origin.place(where)}")
        if (wrong := complaint(where, part[key], hints.get(key))) is not None:
            raise ConfigError(f"{wrong}{origin.place(where)}")
        if (same := declared_number(part[key], hints.get(key))) is not part[key]:
            part[key] = same
    for key, parameter in options.items():
        if key in part:
            continue
        if parameter.default is not inspect.Parameter.empty:
            default = parameter.default
            if default is None or isinstance(default, (bool, int, float, str)):
                part[key] = default
            elif isinstance(default, (list, tuple)):
                part[key] = list(default)
        elif not part.get("_partial_", False):
            raise ConfigError(f"{path}.{key} is not set, and {name} has no default for it. Give it as {path}.{key}=…")


def in_closed_form(network: Any) -> bool:
    """Whether a network is fitted in closed form and has no training (`ldm=gaussian`). A target that is nowhere is `complete`'s to say."""
    from hydra.utils import get_object

    try:
        return bool(getattr(get_object(network["_target_"]), "closed_form", False))
    except Exception:  # of every kind, for what was typed
        return False


def files_of(node: Any, path: str = "") -> dict[str, str]:
    """Path → file of the options of parts that name a file to be read: weights, a picture. (The data's root is a folder.)"""
    found: dict[str, str] = {}
    for key in node if isinstance(node, DictConfig) else range(len(node)) if isinstance(node, ListConfig) else ():
        where, value = f"{path}.{key!s}".lstrip("."), node[key]
        found |= files_of(value, where)
        hints = signature(node["_target_"], path)[1] if isinstance(node, DictConfig) and "_target_" in node else {}
        if str(key) in ("weights", "file") and isinstance(value, str) and "FilePath" in repr(hints.get(str(key))):
            found[where] = value
    return found


def is_given(hint: Any) -> bool:
    """Whether a parameter is marked as following from other parts."""
    return any(rule is Given or isinstance(rule, Given) for rule in getattr(hint, "__metadata__", ()))


@functools.cache
def signature(target: str, path: str) -> tuple[dict[str, inspect.Parameter], dict[str, Any]]:
    from hydra.utils import get_object

    try:
        found: Callable[..., Any] = get_object(target)
    except Exception as error:
        why = " ".join(str(error).split())
        raise ConfigError(
            f"{path}._target_={target}: cannot be imported ({why}). Check its spelling, or set PYTHONPATH to the folder of its file."
        ) from None
    if not callable(found):
        raise ConfigError(f"{path}._target_={target} is not a class or function. Name one that makes the part.")
    if inspect.isclass(found) and _first_init(found).__module__.startswith("torch.nn"):
        return {}, {}  # a module without a constructor of its own has no options
    parameters = dict(inspect.signature(found).parameters)
    for parameter in parameters.values():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            raise ConfigError(
                f"{path}._target_={target} takes **{parameter.name}, so a misspelling could not be found. "
                "Wrap it in a function with a closed signature."
            )
    init = found.__init__ if inspect.isclass(found) else found
    return parameters, typing.get_type_hints(init, include_extras=True)


def _first_init(cls: type) -> type:
    """The class whose constructor `cls` uses."""
    return next(c for c in cls.__mro__ if "__init__" in vars(c))
