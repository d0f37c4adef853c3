"""Hydra's and OmegaConf's complaints in our words: the option's path as typed, the rule, the value, the way out."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ldmlab.config import schema as declared
from ldmlab.config.complete import Origin, is_given, signature
from ldmlab.config.composition import remembered
from ldmlab.config.search import (
    SEARCHPATH,
    folders,
    group_options,
    groups,
    is_group,
    line_of,
    listed,
    option_file,
    read,
    shown,
)
from ldmlab.config.values import complaint, dataclass_in, hint_of, hints_of, misfit, nearest, say
from ldmlab.config.words import Word
from ldmlab.errors import ConfigError


def translate(error: Exception, words: Sequence[Word]) -> ConfigError:
    """What Hydra's composition of `words` raised, as one sentence for the person who typed them."""
    if isinstance(error, ConfigError):
        return error
    texts = [word.text for word in words]
    for word in words:
        if is_group(word.path.replace(".", "/"), texts):
            if word.value is None:
                allowed = listed(group_options(word.path.replace(".", "/"), texts))
                return ConfigError(
                    f"{word.typed}: a group takes the name of one of its options: {allowed}. Or leave it out."
                )
            if not isinstance(word.value, (str, list)):
                return no_such_option(f"{word.path.replace('.', '/')}/{word.value}", words)
        elif (wrong := _typed_wrongly(word)) is not None:
            return ConfigError(wrong)
    text = _chain_text(error)
    if isinstance(error, AssertionError):  # OmegaConf's answer to an option below a node that is null
        return _below_null(words)
    named = re.search(r"Could not override '([\w./@-]+)'", text)
    about = [word for word in words if named and word.text.partition("=")[0].lstrip("+") == named[1]]
    if (missing := _no_such_group(about, texts)) is not None:
        return missing
    if found := re.search(r"Could not (?:find|load) '([\w./-]+)'", text):
        return no_such_option(found[1], words)
    if named and (
        re.search("[/@]", named[1]) or any(word.path == named[1] for word in words)
    ):  # typed; a yaml's own is said below
        return _unknown_key(named[1], words)
    if found := re.search(r"full_key: ([\w.\[\]]+)", text):
        return _wrong_value(found[1], text, words)
    reason = " ".join(text.split())
    place = f" {SEARCHPATH} gave {listed(str(f) for f in folders(texts)[1:])}." if folders(texts)[1:] else ""
    return ConfigError(
        f"{' '.join(texts)}: cannot be composed ({reason[:300]}).{place} Leave out the last word that you added."
    )


def unlisted_option(error: Exception, words: Sequence[Word]) -> str | None:
    """The path of a typed option that a part's constructor takes and its yaml does not list; None for another complaint."""
    found = re.search(r"Could not override '([\w.]+)'", _chain_text(error))
    path = found[1] if found else ""
    if not any(word.path == path and not word.text.startswith("+") for word in words):
        return None
    try:
        node: Any = remembered([word for word in words if word.path != path])[0]
        part = OmegaConf.select(node, path.rpartition(".")[0])
        takes, hints = (
            signature(part["_target_"], path) if isinstance(part, DictConfig) and "_target_" in part else ({}, {})
        )
    except Exception:
        return None
    key = path.rpartition(".")[2]
    return path if key in takes and not is_given(hints.get(key)) else None


def unresolved(error: Exception, words: Sequence[Word]) -> ConfigError:
    """An interpolation that leads nowhere, in a circle, or to a value that does not fit."""
    for word in words:
        if "${" in word.typed:
            return ConfigError(
                f"{word.typed} cannot be resolved: {_first_line(error)} ${{path}} takes the value of another option, "
                f"such as {word.path}='${{ae.fit.lr}}'. Write the value itself."
            )
    found = re.search(r"full_key: ([\w.\[\]]+)", str(error))
    path = found[1] if found else "an option"
    if wanted := re.search(r"(?:Interpolation key '|Missing mandatory value: )([\w.]+)", str(error)):
        return ConfigError(
            f"{wanted[1]} is not set, and {path} takes its value. Give it as {wanted[1]}=…, or give {path}=… as well."
        )
    return ConfigError(f"{path} cannot be resolved: {_first_line(error)} Correct the yaml that sets it.")


def refuse_unknown(node: DictConfig, schema: type, path: str, origin: Origin) -> None:
    """Keys that arrived behind `+` in a typed node: Hydra accepts them, nothing would read them. Raises ConfigError."""
    hints = hints_of(schema)
    for key in node:
        name, where = str(key), f"{path}.{key!s}".lstrip(".")
        if name not in hints:
            near = _deeper(name, node, path) or nearest(name, hints)
            raise ConfigError(
                f"{where}: no such option.{near} {path or 'The top level'} takes: {listed(hints)}.{origin.place(where)}"
            )
        inner = dataclass_in(hints[name])
        below = node._get_node(key)
        if inner is not None and isinstance(below, DictConfig) and _is_plain(below):
            refuse_unknown(below, inner, where, origin)


# ---- what Hydra says ------------------------------------------------------------------------------------------------------


def _chain_text(error: BaseException) -> str:
    parts, seen = [], error
    while seen is not None:
        if str(seen) not in parts:
            parts.append(str(seen))
        seen = seen.__cause__ or seen.__context__  # type: ignore[assignment]
    return "\n".join(parts)


def _typed_wrongly(word: Word) -> str | None:
    """A plain option whose value does not fit its declaration, or that stands below one that has no options."""
    if (wrong := complaint(word.path, word.value, hint_of(word.path))) is not None:
        return wrong if "Write " in wrong else f"{wrong} Leave it out for its default."
    names = word.path.split(".")
    for depth in range(1, len(names)):
        parent = ".".join(names[:depth])
        hint = hint_of(parent)
        open_ended = hint is None or dataclass_in(hint) is not None or misfit({"_target_": ""}, hint) is None
        if not open_ended:
            return f"{word.path}: {parent} has no options of its own. Write {parent}=…, or leave {word.path} out."
    return None


def _first_line(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it leads back to itself."
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"{line.rstrip('.')}."


def no_such_option(named: str, words: Sequence[Word]) -> ConfigError:
    """`ae/kl_f7` is no file of a group."""
    texts = [word.text for word in words]
    group, _, option = named.rpartition("/")
    if not group or not is_group(group, texts):
        return ConfigError(f"{named}: no such file in {listed(shown(f) + '/' for f in folders(texts))}.")
    allowed = group_options(group, texts)
    return ConfigError(f"{group}={option}: no such option.{nearest(option, allowed)} {group} takes: {listed(allowed)}.")


def _no_such_group(about: Sequence[Word], texts: Sequence[str]) -> ConfigError | None:
    """A word `a/b=c` whose group does not exist, or that the chosen option of `a` has no place for; `texts`: all words."""
    for word in about:
        name = word.text.partition("=")[0].lstrip("+")
        if not word.group:
            continue
        if not is_group(name, texts):
            parent = name.rpartition("/")[0]
            known = sorted(
                {str(p.relative_to(f)) for f in folders(texts) for p in f.rglob("*") if p.is_dir() and parent in str(p)}
            )
            return ConfigError(f"{name}: no such group.{nearest(name, known)} Groups: {listed(groups(texts))}.")
        parent, _, child = name.rpartition("/")
        offers = [o for o in group_options(parent, texts) if _has_default(parent, o, child, texts)]
        chosen = next((t.partition("=")[2] for t in texts if t.partition("=")[0] == parent), None)
        if offers and chosen not in offers and chosen is None:
            return ConfigError(
                f"{word.typed}: the chosen {parent} has no {child}. Choose one that has: {parent}={'|'.join(offers)}."
            )
        if chosen is not None and offers and chosen not in offers:
            return ConfigError(
                f"{word.typed}: {parent}={chosen} has no {child}. Choose one that has: {parent}={'|'.join(offers)}."
            )
    return None


def _has_default(group: str, option: str, child: str, texts: Sequence[str]) -> bool:
    file = option_file(group, option, texts)
    defaults = OmegaConf.select(read(file), "defaults") or [] if file is not None else []
    names = [str(key) for item in defaults if isinstance(item, DictConfig) for key in item]
    inherited = [str(item) for item in defaults if isinstance(item, str) and item != "_self_"]
    return child in names or any(_has_default(group, parent, child, texts) for parent in inherited)


def _wrong_value(path: str, text: str, words: Sequence[Word]) -> ConfigError:
    """A value that OmegaConf could not convert, or a key that a typed node does not have, in a yaml."""
    if unknown := re.search(r"Key '(\w+)' not in '(\w+)'", text):
        where = re.search(r"In '([\w/]+)'", text)
        node = getattr(declared, unknown[2], None)
        allowed = [f.name for f in fields(node)] if node is not None and is_dataclass(node) else []
        group, _, option = where[1].rpartition("/") if where else ("", "", "")
        file = option_file(group, option, [word.text for word in words])
        line = line_of(file, unknown[1]) if file is not None else None
        place = f" Set in {shown(file)}, line {line}." if file is not None and line else ""
        parent = path.rpartition(".")[0] or "The top level"
        return ConfigError(
            f"{path}: no such option.{nearest(unknown[1], allowed)} {parent} takes: {listed(allowed)}.{place}"
        )
    value = re.search(r"Value '(.*?)'.*could not be converted to (\w+)", text, re.S)
    if value:
        kind = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}.get(value[2], value[2])
        return ConfigError(f"{path} must be {kind}; got {value[1]!r}. Leave it out for its default.")
    if re.search(r"Could not (?:set|assign|merge).*None|not Optional|non-optional|Incompatible value 'None'", text):
        return ConfigError(f"{path} must not be null. Leave it out for its default.")
    reason = text.strip().splitlines()[0].removeprefix("Error merging override ")
    return ConfigError(f"{path}: {reason.rstrip('.')}. Leave it out for its default.")


def _unknown_key(path: str, words: Sequence[Word]) -> ConfigError:
    """`path` is not in the tree; say what is. The tree is composed again without the words that failed."""
    texts = [word.text for word in words]
    if "/" in path or "@" in path:
        return ConfigError(f"{path}: no such group.{nearest(path, groups(texts))} Groups: {listed(groups(texts))}.")
    rest = [word for word in words if word.path != path]
    try:
        node: Any = remembered(rest)[0]
    except Exception as error:
        return translate(error, rest)
    parent, names = "", path.split(".")
    if len(names) == 1 and is_group(path, texts):
        return ConfigError(f"{path}: the menu has no such group of its own. Groups: {listed(groups(texts))}.")
    for name in names:
        if not isinstance(node, DictConfig) or name not in node or OmegaConf.is_missing(node, name):
            break
        parent, node = f"{parent}.{name}".lstrip("."), node[name]
    if not isinstance(node, DictConfig):
        return ConfigError(f"{path}: {parent} is {say(node)} here and has no options of its own. Leave {path} out.")
    unknown = path.removeprefix(parent).strip(".").split(".")[0]
    allowed = [str(k) for k in node if not str(k).startswith("_")]
    near = _deeper(unknown, node, parent) or nearest(unknown, allowed)
    return ConfigError(f"{path}: no such option.{near} {parent or 'The top level'} takes: {listed(allowed)}.")


def _below_null(words: Sequence[Word]) -> ConfigError:
    """An option of a part that this composition does not have, such as `ae.fit.images` with ae=identity."""
    texts = [word.text for word in words]
    try:
        chosen: Any = remembered([word for word in words if "." not in word.text.split("=")[0]])[0]
    except Exception:
        chosen = None
    for path in (o.split("=")[0].lstrip("+") for o in texts):
        node: Any = chosen
        for depth, name in enumerate(path.split(".")):
            if node is None or not isinstance(node, DictConfig):
                if depth == 0:
                    break
                parent = ".".join(path.split(".")[:depth])
                return ConfigError(f"{path}: {parent} is {say(node)} here, so it has no options. Leave {path} out.")
            node = node[name] if name in node and not OmegaConf.is_missing(node, name) else None
    return ConfigError(f"{' '.join(texts)}: an option was given below one that has none here. Leave it out.")


def _is_plain(node: DictConfig) -> bool:
    """Neither null, nor missing, nor an interpolation: a node with options of its own."""
    return not (node._is_none() or node._is_missing() or node._is_interpolation())


def _deeper(word: str, node: DictConfig, path: str) -> str:
    """The nearest option here or further down: `ae.wieght` meant `ae.regulariser.weight`."""
    found: dict[str, str] = {}

    def walk(inner: DictConfig, prefix: str) -> None:
        for key in inner:
            name = f"{prefix}.{key!s}".lstrip(".")
            if not str(key).startswith("_") and key != word:
                found.setdefault(str(key), name)
            below = inner._get_node(key)
            if isinstance(below, DictConfig) and _is_plain(below):
                walk(below, name)

    walk(node, path)
    near = difflib.get_close_matches(word[:200], found, n=1, cutoff=0.6)
    return f" Did you mean '{near[0] if near[0] in node else found[near[0]]}'?" if near else ""
