"""One walker for every option: does a value fit the type, the range and the words that its declaration says?

`misfit` looks at one value, `hint_of` finds the declaration of a plain option by its path, `check_schema` walks all of them.
Options of parts are checked in `complete.py` with the same `misfit`.
"""

import difflib
import functools
import inspect
import math
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from omegaconf import DictConfig, ListConfig, OmegaConf

from ldmlab.config.guidance import GUIDANCE
from ldmlab.config.schema import RunConfig
from ldmlab.config.search import listed
from ldmlab.ranges import LARGEST, Choices, Items, Range

PLAIN = Range(at_least=-LARGEST, at_most=LARGEST)  # a whole number that says nothing of itself
LONGEST = 65_536  # characters of a text that says nothing of itself


def misfit(value: Any, hint: Any) -> str | None:
    """None when `value` fits the annotation, else the words for what it must be. Types we do not know are trusted."""
    if hint is None or hint is inspect.Parameter.empty:
        return None
    if hint is Any:
        return _not_finite(value)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        rules = [rule for rule in args[1:] if hasattr(rule, "refuse")]
        ranged = any(isinstance(rule, Range) for rule in rules)
        wrong = _bare(value, args[0]) if ranged else misfit(value, args[0])
        whole = next((rule.what for rule in rules if isinstance(rule, Items) and rule.what), None)
        wrong = whole if wrong is not None and whole is not None else wrong
        return wrong or next((wrong for rule in rules if (wrong := rule.refuse(value)) is not None), None)
    if origin in (typing.Union, types.UnionType):
        refusals = [misfit(value, arg) for arg in args if arg is not type(None)]
        if (value is None and type(None) in args) or None in refusals:
            return None
        return " or ".join([w for w in refusals if w] + (["null"] if type(None) in args else []))
    if origin is Literal:
        return None if value in args else f"one of {listed([str(a) for a in args])}"
    if origin in (list, tuple, Sequence):
        return _list_misfit(value, args)
    if hint is float and isinstance(value, (int, float)) and not math.isfinite(value):
        return "finite"
    if hint is int and _whole(value):
        return PLAIN.refuse(value)
    if hint is str and isinstance(value, str) and (len(value) > LONGEST or "\0" in value):
        return f"text of at most {LONGEST:,} characters"
    return _bare(value, hint)


def _bare(value: Any, hint: Any) -> str | None:
    """The type alone."""
    if hint is bool:
        return None if isinstance(value, bool) else "true or false"
    if hint is int:
        return None if _whole(value) else "a whole number"
    if hint is float:
        return None if isinstance(value, (int, float)) and not isinstance(value, bool) else "a number"
    if hint is str:
        return None if isinstance(value, str) else "text"
    if inspect.isclass(hint) and not issubclass(hint, (Path, Mapping)) and hint.__module__ != "builtins":
        options_alone = isinstance(value, DictConfig) and "_target_" not in value and not is_dataclass(hint)
        plain = value is None or options_alone or isinstance(value, (str, bool, int, float, ListConfig, list))
        return f"a part with a _target_ ({hint.__name__})" if plain else None
    return None


def declared_number(value: Any, hint: Any) -> Any:
    """The value, a whole number as a float where one is declared: guidance=2 and guidance=2.0 are one result with one id."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return declared_number(value, args[0])
    if origin in (typing.Union, types.UnionType):
        if int in [_type_of(arg) for arg in args]:
            return value
        return next((new for arg in args if (new := declared_number(value, arg)) is not value), value)
    if origin in (list, tuple, Sequence) and isinstance(value, (ListConfig, list, tuple)):
        own = args[0] if args else Any
        items = [declared_number(item, own) for item in value]
        return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
    return float(value) if hint is float and _whole(value) else value


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _list_misfit(value: Any, args: tuple[Any, ...]) -> str | None:
    if not isinstance(value, (ListConfig, list, tuple)):
        return f"a list of {_kind(args[0]) if args else 'values'}s"
    items = list(value)
    for item in items if args else []:
        if _type_of(args[0]) is not Any and (wrong := _bare(item, _type_of(args[0]))) is not None:
            return f"a list, each {wrong}"
    return next((f"{wrong}, each of them" for item in items if args and (wrong := misfit(item, args[0]))), None)


def _type_of(hint: Any) -> Any:
    return typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint


def _kind(hint: Any) -> str:
    return {int: "whole number", float: "number", str: "word", bool: "true/false"}.get(_type_of(hint), "value")


def _not_finite(value: Any) -> str | None:
    many = value if isinstance(value, (ListConfig, list)) else [value]
    return "finite" if any(isinstance(v, float) and not math.isfinite(v) for v in many) else None


def words_of(hint: Any) -> list[str]:
    """The words that an annotation allows, if it allows a few only."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return [str(a) for a in args]
    own = [word for rule in args[1:] if isinstance(rule, Choices) for word in rule.words] if origin is Annotated else []
    return own + [word for arg in args for word in words_of(arg)]


def complaint(path: str, value: Any, hint: Any) -> str | None:
    """None when the value fits, else the sentence that says so: path, rule, value, and the nearest word or spelling."""
    wrong = misfit(value, hint)
    if wrong is None:
        return None
    return (
        f"{path} must be {wrong}; got {say(value)}.{nearest(str(value), words_of(hint))}{_as_list(path, value, hint)}"
    )


def _as_list(path: str, value: Any, hint: Any) -> str:
    """`Write eval.at=[0.5].` where 0.5 is given for a list of such."""
    text = say(value).strip("'")
    single = not isinstance(value, (ListConfig, list, Mapping)) and value is not None
    return f" Write {path}=[{text}]." if single and misfit([value], hint) is None else ""


def say(value: Any) -> str:
    """A value as it goes into a message: on one line and not longer than it."""
    plain = OmegaConf.to_container(value) if isinstance(value, (DictConfig, ListConfig)) else value
    text = "null" if plain is None else repr(plain)
    return text if len(text) <= 120 else f"{text[:80]}… ({len(text):,} characters)"


def nearest(word: str, allowed: Iterable[str]) -> str:
    near = difflib.get_close_matches(word[:200], list(allowed), n=1, cutoff=0.5)
    return f" Did you mean '{near[0]}'?" if near else ""


# ---- the schema -----------------------------------------------------------------------------------------------------------


def dataclass_in(hint: Any) -> type | None:
    """The dataclass of a field's annotation: `Fit` of `Fit | None`."""
    candidates = [hint, *typing.get_args(hint)]
    return next((c for c in candidates if inspect.isclass(c) and is_dataclass(c)), None)


@functools.cache
def hints_of(schema: type) -> dict[str, Any]:
    """Field → annotation with its rules."""
    return typing.get_type_hints(schema, include_extras=True)


def hint_of(path: str) -> Any:
    """The annotation of a plain option (`ae.fit.lr`), None for a path that the schema does not declare."""
    schema: type | None = RunConfig
    hint: Any = RunConfig
    names = path.split(".")
    for depth, name in enumerate(names):
        if names[:depth] == ["guidance"]:
            schema = hint = GUIDANCE.get(name)
        elif schema is None or name not in (hints := hints_of(schema)):
            return None
        else:
            hint = hints[name]
            schema = dataclass_in(hint)
    return hint


def complaints(node: DictConfig, schema: type, path: str = "") -> Iterator[tuple[str, str]]:
    """(option's path, sentence) for every plain option below `node` that does not fit its declaration."""
    for name, hint in hints_of(schema).items():
        if name not in node or OmegaConf.is_missing(node, name):
            continue
        where, value, inner = f"{path}{name}", node[name], dataclass_in(hint)
        if inner is None:
            if (wrong := complaint(where, value, hint)) is not None:
                yield where, wrong
        elif isinstance(value, DictConfig):
            yield from complaints(value, inner, f"{where}.")
        elif value is not None or type(None) not in typing.get_args(hint):
            allowed = listed([f.name for f in fields(inner)])
            yield where, f"{where} must have options of its own ({allowed}); got {say(value)}."
