"""From words on the command line to a completed, read-only configuration; everything wrong is said here, before anything is built.

Net 1: `schema.py`, the types, ranges and words of plain options. (`words.py` reads the command line, Hydra composes,
`messages.py` says Hydra's complaints in our words.)
Net 2: `complete.py`, every node with a `_target_` against its constructor; defaults are written out.
Net 3, whether the parts fit each other and the data, is in `pipeline/checks.py`.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any, NamedTuple, cast

from omegaconf import DictConfig, OmegaConf

from ldmlab.conditioning.asked import Asked
from ldmlab.config import search
from ldmlab.config.complete import Origin, complete, in_closed_form
from ldmlab.config.composition import register_schema, remembered, whole
from ldmlab.config.conditions import check_parts, joined_conditions, of_parts, spread
from ldmlab.config.guidance import GUIDANCE
from ldmlab.config.messages import no_such_option, refuse_unknown, translate, unlisted_option, unresolved
from ldmlab.config.rules import check_together
from ldmlab.config.schema import STAGES, RunConfig
from ldmlab.config.search import CONF, ROOT, group_options, groups, listed, option_file
from ldmlab.config.values import complaints, misfit, nearest, say
from ldmlab.config.words import SWEEP_CHILD, Word, read
from ldmlab.errors import ConfigError

__all__ = [
    "CONF", "ROOT", "STAGES", "SWEEP_CHILD", "Composed", "RunConfig", "finish", "group_options", "groups", "load", "misfit",
    "register_schema", "with_values",
]  # fmt: skip

GROUPS = ("data", "ae", "ldm", "cond", "objective", "sampler", "eval")  # a run needs one option of each


class Composed(NamedTuple):
    """A checked configuration, completed and read-only, and the names that were chosen (`{"ae": "kl_f8", …}`) for titles."""

    cfg: DictConfig
    choices: dict[str, str]

    @property
    def asked(self) -> Asked | None:
        """What a person asked of sample.py beside it; None for every other command."""
        return None


class ComposedAndAsked(Composed):
    """A configuration, and what a person asked beside it."""

    _asked: Asked

    @classmethod
    def of(cls, composed: Composed, asked: Asked) -> "ComposedAndAsked":
        both = cls(*composed)
        both._asked = asked
        return both

    @property
    def asked(self) -> Asked:
        return self._asked


def load(overrides: Sequence[str]) -> Composed:
    """Compose, check and complete the configuration that `overrides` describe. It is read-only.

    Raises ConfigError for anything that a user may have mistyped.
    """
    words = read(overrides)
    cfg, choices = _compose(words)
    return finish(cfg, choices, words)


def swept(overrides: Sequence[str]) -> dict[str, str]:
    """Option → values that the sweep among these words goes over (`params_of`). Raises ConfigError as `load` does."""
    return params_of(_hydra(read(overrides), whole)[1])


def params_of(hydra: DictConfig) -> dict[str, str]:
    """From Hydra's own node: what the study's own grid goes over, the first of `grids_of`."""
    return grids_of(hydra)[0]


def grids_of(hydra: DictConfig) -> list[dict[str, str]]:
    """From Hydra's own node: the grids of cells that an experiment has for this study (`hydra.sweeper.of_study`), else the study's
    params and what it has beside them.
    """
    study = hydra.runtime.choices.get("sweeps")
    found = (hydra.sweeper.get("of_study") or {}).get(study) if study else None
    if not found:
        found = [hydra.sweeper.params or {}, *(hydra.sweeper.get("beside") or [])]
    return [
        {str(path): str(values) for path, values in grid.items()}
        for grid in ([found] if isinstance(found, DictConfig) else found)
    ]


def outside(hydra: DictConfig) -> list[str]:
    """From Hydra's own node: the folders of a user's own parts, as a word that every cell needs and Hydra keeps to itself."""
    return [f"{search.SEARCHPATH}={list(hydra.searchpath)}"] if hydra.searchpath else []


def with_values(cfg: DictConfig, values: Mapping[str, Any]) -> DictConfig:
    """A read-only copy of a completed configuration with other values at some paths: `{"ldm.network.width": 64}`.

    Raises ConfigError for a path that the configuration does not have.
    """
    copy = deepcopy(cfg)
    OmegaConf.set_readonly(copy, False)
    for path, value in values.items():
        if not _has(copy, path):
            raise ConfigError(f"{path} is no option of this composition, so it cannot be set to {say(value)}.")
        OmegaConf.update(copy, path, value, merge=False)
    OmegaConf.set_readonly(copy, True)
    return copy


def _compose(words: Sequence[Word]) -> tuple[DictConfig, dict[str, str]]:
    """Hydra's composition, with its complaints in our voice."""
    typed = tuple(word.text for word in words)
    for word in words:
        group, options = word.path.replace(".", "/"), word.value if isinstance(word.value, list) else [word.value]
        for option in options if search.is_group(group, typed) else []:
            if str(option).startswith("_"):  # a helper that the group's options share
                raise no_such_option(f"{group}/{option}", words)
    cfg, hydra = _hydra(words, remembered)
    if hydra.sweeper.get("params") and SWEEP_CHILD not in os.environ:
        sweep = hydra.runtime.choices.get("sweeps")
        raise ConfigError(
            f"sweeps={sweep} is a sweep of several runs and needs -m: python src/train.py -m sweeps={sweep}"
        )
    choices = {k: str(v) for k, v in hydra.runtime.choices.items() if not k.startswith("hydra") and v is not None}
    OmegaConf.set_struct(cfg, False)
    return cfg, joined_conditions(choices)


def _hydra(
    words: Sequence[Word], compose: Callable[[Sequence[Word]], tuple[DictConfig, DictConfig]]
) -> tuple[DictConfig, DictConfig]:
    """The composition and Hydra's own node. An option that a part takes though its yaml leaves it out may be typed as well."""
    words = spread(words)
    try:
        return compose(words)
    except Exception as error:  # Hydra and OmegaConf raise of every kind for what was typed
        if (path := unlisted_option(error, words)) is None:
            raise translate(error, words) from None
    return _hydra([word._replace(text=f"++{word.text}") if word.path == path else word for word in words], compose)


def finish(cfg: DictConfig, choices: dict[str, str], words: Sequence[Word]) -> Composed:
    """What follows composition: presets, guidance, metrics, seeds; then parts, ranges and rules are checked."""
    origin = Origin(choices, frozenset(word.path for word in words), tuple(word.text for word in words))
    refuse_unknown(cfg, RunConfig, "", origin)
    for group in GROUPS:
        if OmegaConf.is_missing(cfg, group) or cfg._get_node(group)._is_none():  # type: ignore[union-attr]
            allowed = listed(group_options(group, origin.words))
            raise ConfigError(f"{group} is not chosen, and a run needs one. {group} takes: {allowed}. Write {group}=….")
    _apply_presets(
        cfg, origin.typed, "debug" in choices, "data."
    )  # before the options that follow them: ${data.resolution}
    try:
        plain = cast(DictConfig, OmegaConf.create(OmegaConf.to_container(cfg, resolve=True)))
    except Exception as error:
        raise unresolved(error, words) from None
    _type_guidance(plain, origin)
    _apply_presets(plain, origin.typed, "debug" in choices)
    plain.where_present = None
    check_parts(plain, origin.typed)
    _leave_untrained(plain, origin.typed)
    _fill_metrics(plain, origin)
    _fill_seeds(plain)
    complete(plain, "", origin)
    for path, wrong in complaints(plain, RunConfig):
        raise ConfigError(f"{wrong}{origin.place(path)}")
    check_together(plain, origin.typed)
    OmegaConf.set_readonly(plain, True)
    return Composed(plain, choices)


def _type_guidance(plain: DictConfig, origin: Origin) -> None:
    """Kinds without a `_target_` get their schema's types and defaults; a kind that was not chosen is null."""
    for name, node in list(plain.guidance.items()):
        path = f"guidance.{name}"
        if node is None or (isinstance(node, DictConfig) and "_target_" in node):
            continue
        if name not in GUIDANCE or not isinstance(node, DictConfig):
            hint = nearest(str(name), GUIDANCE)
            raise ConfigError(
                f"{path}: no such option.{hint} guidance takes: {listed(GUIDANCE)}, or a part with a _target_."
                f" Choose it by guidance=…: {listed(group_options('guidance', origin.words))}."
            )
        schema = GUIDANCE[str(name)]
        refuse_unknown(node, schema, path, origin)
        for where, wrong in complaints(node, schema, f"{path}."):
            raise ConfigError(f"{wrong}{origin.place(where)}")
        plain.guidance[name] = OmegaConf.to_container(OmegaConf.merge(OmegaConf.structured(schema), node))
    for name in GUIDANCE:
        if name not in plain.guidance:
            plain.guidance[name] = None


def _apply_presets(plain: DictConfig, typed: frozenset[str], debug: bool, under: str = "") -> None:
    """`where_present`: values that debug=… and experiment=… give to what this composition has and nobody typed; of the paths
    that begin with `under`.

    `{at_most: n}` lowers a larger value and leaves a smaller one alone. A first stage with `recipe: true` keeps its settings but
    under debug=….
    """
    presets = plain.where_present or {}
    parts = list(plain.cond.parts or {}) if isinstance(plain.cond, DictConfig) else []
    if not isinstance(presets, Mapping):
        raise ConfigError(
            f"where_present must be a mapping of option paths to values; got {say(presets)}. Leave it out."
        )
    for path, value in [(p, value) for preset, value in presets.items() for p in of_parts(preset, parts)]:
        said = any(word == path or word.startswith(f"{path}.") for word in typed)  # the path, a part of it, its group
        if (
            said
            or not path.startswith(under)
            or not _has(plain, path)
            or (path.startswith("ae.") and plain.ae.recipe and not debug)
        ):
            continue
        if isinstance(value, DictConfig) and list(value) == ["at_most"]:
            now = OmegaConf.select(plain, path)
            value = value.at_most if now is None or now > value.at_most else now
        OmegaConf.update(plain, path, value, merge=False)


def _leave_untrained(plain: DictConfig, typed: frozenset[str]) -> None:
    """What comes from outside (`ae.weights`, `ldm.weights`) has no budget; an imported stage's decoder may learn on. Nor has what is
    fitted in closed form (ldm=gaussian), whatever an experiment says of the training of others.
    """
    if isinstance(plain.ae, DictConfig) and plain.ae.weights is not None:
        plain.ae.fit = None
        plain.ae.loss = plain.ae.loss if plain.ae.train == "decoder" else None
    if isinstance(plain.ldm, DictConfig) and plain.ldm.weights is not None:
        plain.ldm.fit = None
        plain.eval.at = plain.eval.at if "eval.at" in typed else [1.0]
    if isinstance(plain.ldm, DictConfig) and in_closed_form(plain.ldm.network):
        plain.ldm.fit = None


def _fill_metrics(plain: DictConfig, origin: Origin) -> None:
    """`cfg.metric`: the settings of each of `eval.metrics`, from metric/<name>.yaml on the search path and what was typed.

    Raises ConfigError for a metric that no yaml describes, and for settings of one that is not asked for.
    """
    known = group_options("metric", origin.words)
    given = cast(DictConfig, plain.metric)
    plain.metric = {}
    for name in list(plain.eval.metrics) if known else []:
        file = option_file("metric", str(name), origin.words)
        if file is None:
            hint = nearest(str(name), known)
            raise ConfigError(f"eval.metrics: no metric is called '{name}'.{hint} There are: {listed(known)}.")
        node = search.read(file)
        plain.metric[name] = OmegaConf.merge(node, given[name]) if name in given else node
    for path in sorted(origin.typed):
        if path.startswith("metric.") and path.split(".")[1] not in plain.metric:
            asked = listed([str(name) for name in plain.eval.metrics])
            raise ConfigError(
                f"{path} is a setting of a metric that is not asked for: eval.metrics=[{asked}]. Add it there, or leave {path} out."
            )


def _fill_seeds(plain: DictConfig) -> None:
    """Each stage has its own seed; null is the run's, so that two spellings of one seed mean one result."""
    for node in (plain.ae, plain.ldm, plain.eval, plain.guidance.classifier):
        if isinstance(node, DictConfig) and "seed" in node and node.seed is None:
            node.seed = plain.seed


def _has(cfg: DictConfig, path: str) -> bool:
    """Whether the composition has this option, be it without a value."""
    *above, last = path.split(".")
    node: Any = cfg
    for name in above:
        if not isinstance(node, DictConfig) or name not in node:
            return False
        node = node[name]
    return isinstance(node, DictConfig) and (last in node or OmegaConf.is_missing(node, last))
