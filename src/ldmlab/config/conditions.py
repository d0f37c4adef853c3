"""Several conditionings by one word: cond=[class_label,semantic], typed or in an experiment's yaml.

Each option of a list would land in the same place, `cond`, and one would overwrite the other. So the list becomes `cond=_several`
with each named option in a place of its own, `cond.parts.<name>`, before Hydra composes. The order of the names is the alphabet's,
however they were typed: one set of conditions is one network.
"""

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from ldmlab.config.messages import no_such_option
from ldmlab.config.search import group_options, is_group, option_file, read
from ldmlab.config.words import Word
from ldmlab.errors import ConfigError

GROUP, SEVERAL, PLACE = "cond", "_several", "cond.parts"


def spread(words: Sequence[Word]) -> list[Word]:
    """The words with a list of conditionings spread over their places; as they are where there is none. Raises ConfigError."""
    names = _listed(words)
    if names is None:
        return list(words)
    if len(names) == 1:
        text = f"{GROUP}={names[0]}"
        return [*(word for word in words if word.path != GROUP), Word(text, text, GROUP, names[0], False, [text])]
    texts = [word.text for word in words]
    for name in names:
        if name not in group_options(GROUP, texts):
            raise no_such_option(f"{GROUP}/{name}", words)
        if name == "none":
            raise ConfigError(f"cond=[{','.join(names)}]: none is no conditioning beside others. Leave it out.")
    own = [f"{GROUP}={SEVERAL}", *(f"+{GROUP}@{PLACE}.{name}={name}" for name in sorted(names))]
    kept = [word for word in words if word.path != GROUP]
    return [
        *kept,
        *(Word(text, text, f"{GROUP}@{i}" if i else GROUP, SEVERAL, False, [text]) for i, text in enumerate(own)),
    ]


def _listed(words: Sequence[Word]) -> list[str] | None:
    """The names of a list that was typed, or that a yaml chosen by these words has; None for a single option."""
    typed = [word for word in words if word.path == GROUP]
    if typed:
        value = typed[-1].value
        return [str(name) for name in value] if isinstance(value, list) and value else None
    texts = [word.text for word in words]
    groups = [(word.path.replace(".", "/"), word.value) for word in words if isinstance(word.value, str)]
    chosen = (_of_file(group, option, texts) for group, option in groups if is_group(group, texts))
    return next((names for names in chosen if names is not None), None)


def _of_file(group: str, option: str, texts: Sequence[str]) -> list[str] | None:
    """The list that an option's yaml, or one that it is based on, chooses: `override /cond: [class_label, semantic]`."""
    file = option_file(group, option, texts)
    node: Any = read(file) if file is not None else None
    for item in (node.get("defaults") or []) if isinstance(node, DictConfig) else []:
        if isinstance(item, DictConfig):
            for key, value in item.items():
                if str(key).removeprefix("override ").strip("/ ") == GROUP and isinstance(value, ListConfig):
                    return [str(name) for name in value]
        elif isinstance(item, str) and item != "_self_" and (found := _of_file(group, item, texts)) is not None:
            return found
    return None


def joined_conditions(choices: dict[str, str]) -> dict[str, str]:
    """The names that were chosen, of several conditionings one name: class_label+semantic."""
    if choices.get(GROUP) != SEVERAL:
        return choices
    inside = f"{GROUP}@{PLACE}."
    names = sorted(name for group, name in choices.items() if group.startswith(inside))
    return {k: v for k, v in choices.items() if not k.startswith(inside)} | {GROUP: "+".join(names)}


def of_parts(path: str, names: Sequence[str]) -> list[str]:
    """A preset's path, and where several conditionings have it each: cond.conditioner.dim of all parts."""
    if not names or not path.startswith("cond.conditioner."):
        return [path]
    return [f"{PLACE}.{name}.{path.removeprefix('cond.')}" for name in names]


def check_parts(plain: DictConfig, typed: frozenset[str]) -> None:
    """Which options of `cond` belong together; takes the parts' own `label` and `prompt` away, for samples have one. Raises ConfigError."""
    cond = plain.cond
    if cond.parts is None:
        if cond.conditioner is None:
            raise ConfigError("cond.conditioner=null leaves no conditioning. Use cond=none.")
        if cond.apart:
            raise ConfigError(
                "cond.apart=true drops each of several conditions by itself, and there is one. Use cond.drop alone."
            )
        return
    if not isinstance(cond.parts, DictConfig) or cond.conditioner is not None:
        raise ConfigError(
            "cond.parts has several conditionings by name, and cond.conditioner one: give cond=[…,…] instead."
        )
    for name, part in ((str(name), part) for name, part in cond.parts.items()):
        if f"{PLACE}.{name}.label" in typed:
            raise ConfigError(f"{PLACE}.{name}.label: one class is asked of the whole sample. Use cond.label=…")
        if f"{PLACE}.{name}.prompt" in typed:
            raise ConfigError(f"{PLACE}.{name}.prompt: one text is asked of the whole sample. Use cond.prompt=…")
        if not cond.apart and f"{PLACE}.{name}.drop" in typed:
            raise ConfigError(
                f"{PLACE}.{name}.drop={part.drop}: conditions are dropped together, with cond.drop={cond.drop}. Set cond.drop, or "
                "cond.apart=true."
            )
        cond.parts[name] = OmegaConf.create({"conditioner": part.conditioner, "drop": part.get("drop", cond.drop)})
    if cond.apart and "cond.drop" in typed:
        raise ConfigError(
            "cond.drop and cond.apart=true are both given: apart, each has cond.parts.<name>.drop. Leave one out."
        )
