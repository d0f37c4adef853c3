"""Words of the command line before Hydra reads them: ordinary paths are quoted, what cannot be meant is refused in our words."""

import functools
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from ldmlab.config.search import SEARCHPATH
from ldmlab.errors import ConfigError

SWEEP_CHILD = "LDMLAB_SWEEP_CHILD"  # set by the sweep launcher: one job of a sweep, which repeats `sweeps=…` without -m
LAUNCHERS = ("hydra.launcher", "hydra.sweep", "hydra.sweeper")  # paths of how a sweep runs, with dots
SLURM = "submitit_slurm"  # the launcher of the extra `slurm`
QUEUE_WORDS = ("submit", "status", "cancel")  # options of the command that submits, and not of the jobs
NO_CLUSTER = f"submit=true puts jobs into a cluster's queue and returns; it needs hydra/launcher={SLURM}. Leave it out, or add that."


class Word(NamedTuple):
    """One word: as typed, as Hydra gets it, its path with dots (`ae.loss` for a group), and its value."""

    typed: str
    text: str
    path: str
    value: Any
    group: bool  # a group option, `ae/loss=pixel`
    values: list[str]  # of a sweep, one word each; else itself


def read(typed: Sequence[str], sweep: bool = False) -> list[Word]:
    """Every word, checked. `sweep`: several values may be given (-m). Raises ConfigError."""
    words = [_read(word, sweep) for word in typed]
    seen: dict[str, Word] = {}
    for word in words:
        if word.path in seen and SWEEP_CHILD not in os.environ and not sweep:
            raise ConfigError(
                f"{word.path} is given twice: {seen[word.path].typed} and {word.typed}. Leave one of them out."
            )
        seen[word.path] = word
    return list(seen.values())  # a job of a sweep repeats the sweep's own words before those typed: the last one counts


def _read(typed: str, sweep: bool) -> Word:
    path, found = typed.partition("=")[0], parse(_prepared(typed))
    assert found.input_line is not None
    if found.is_delete():
        bare = path.lstrip("~")
        raise ConfigError(
            f"{typed}: an option cannot be taken away. Leave the word out for {bare}'s default, or give it a value: {bare}=… "
            "(null where it may have none)."
        )
    if found.is_sweep_override() and not sweep:
        raise ConfigError(
            f"{typed} names several values, and one run has one. A sweep needs -m: python src/train.py -m {typed}. "
            f"A value that has commas in it is quoted: {path}=\"'…'\"; a list stands in brackets: {path}=[…]."
        )
    key = found.key_or_group
    _refuse_without_effect(typed, key, sweep)
    values = [f"{path}={v}" for v in found.sweep_string_iterator()] if found.is_sweep_override() else [found.input_line]
    value = None if found.is_sweep_override() else found.value()
    group = "/" in key
    if (
        isinstance(value, list)
        and any(isinstance(v, (str, int)) and value.count(v) > 1 for v in value)
        and "." not in key
    ):
        raise ConfigError(f"{typed} names one option twice. Write each once.")
    text = found.input_line
    if key.split(".")[0] == "metric" and not text.startswith("+"):
        text = f"++{text}"  # the node is filled after composition, from eval.metrics
    return Word(typed, text, key.replace("/", "."), value, group, values)


def _refuse_without_effect(typed: str, key: str, sweep: bool) -> None:
    if not key.startswith("hydra") or key == SEARCHPATH:
        return
    if sweep and key.replace("/", ".").startswith(LAUNCHERS) and typed != "hydra/launcher=basic":
        return
    if key.startswith(("hydra/launcher", "hydra.launcher")):
        raise ConfigError(
            f"{typed} has no effect here: a launcher starts the jobs of a sweep (-m); hydra/launcher=processes does so on this "
            f"machine, hydra/launcher={SLURM} on a cluster, there a single run too. Leave it out."
        )
    raise ConfigError(
        f"{typed} has no effect here: results lie where store=… says, by their ids. Use store=folder, or leave it out."
    )


@functools.lru_cache(maxsize=4096)
def parse(text: str) -> Override:
    """One word as Hydra reads it. Raises what Hydra raises."""
    return OverridesParser.create().parse_override(text)


def _parses(text: str) -> bool:
    try:
        parse(text)
    except (HydraException, ValueError, OverflowError, RecursionError):
        return False
    return True


def _prepared(typed: str) -> str:
    """The word as Hydra can read it. Raises ConfigError, saying how to write it, when it cannot be meant."""
    key, equals, value = typed.partition("=")
    if not typed.strip():
        raise ConfigError("an empty word stands on the command line: write path=value, or leave it out.")
    if not typed.startswith("~") and (not equals or not key.strip("+ ")):
        raise ConfigError(f"{_short(typed)}: not readable as an option. Write path=value, such as seed=1.")
    if key != key.strip():
        raise ConfigError(f"{_short(typed)}: write path=value without a space before the =: {key.strip()}={value}.")
    if typed.startswith("~"):
        if _parses(typed):
            return typed
        raise ConfigError(
            f"{_short(typed)}: not readable as an option, and an option cannot be taken away. Write path=value."
        )
    if not _parses(f"{key}=1"):
        raise ConfigError(
            f"{_short(typed)}: '{_short(key)}' is not an option's path. Write words with dots, groups with slashes: "
            "ae.fit.lr=1e-4, ae/loss=pixel."
        )
    value = os.path.expanduser(value) if value.startswith("~") else value
    text = f"{key}={value}"
    if _parses(text):
        return text
    if wrong := _unfinished(key, value):
        raise ConfigError(f"{_short(typed)}: {wrong}")
    quoted = f"{key}='{_escaped(value)}'"
    if _parses(quoted):
        return quoted
    raise ConfigError(
        f"{_short(typed)}: not readable as an option. Write path=value, and quote the value: {key}=\"'…'\"."
    )


def _unfinished(key: str, value: str) -> str | None:
    """What a value lacks that begins as a list, a mapping or a quotation, which must end as one."""
    opened = value.lstrip()[:1]
    closed = {"[": "]", "{": "}", "'": "'", '"': '"'}.get(opened)
    if closed is not None:
        what = {"[": "list", "{": "mapping"}.get(opened, "quoted value")
        if len(value.strip()) > 1 and value.rstrip().endswith(closed):
            how = (
                f"a value in which such a sign is meant is quoted: {key}=\"'…'\""
                if opened not in "'\""
                else "quote it whole"
            )
            return f"not readable as a {what}; {how}."
        return f"a {what} that begins with {opened} must end with {closed}. Write {key}={opened}…{closed}."
    if "${" in value and "}" not in value.partition("${")[2]:
        return f"${{ begins the name of another option and must end with }}. Write {key}='${{path}}'."
    return None


def _escaped(value: str) -> str:
    """Inside single quotes, as Hydra's grammar reads them: a quote is escaped, and backslashes before one."""
    value = re.sub(r"(\\*)'", lambda m: m[1] * 2 + r"\'", value)
    return re.sub(r"(\\+)$", lambda m: m[1] * 2, value)


def _short(text: str) -> str:
    text = " ".join(text.split()) or repr(text)
    return text if len(text) <= 120 else f"{text[:80]}… ({len(text):,} characters)"
