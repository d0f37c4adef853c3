"""What a sweep goes over, and its seeds: `seeds={first_stage: 2, denoiser: 2, sampling: 2}` makes eight cells of one.

Seeds nest: each first stage has its own denoisers, each denoiser its own sets of samples. A first stage in closed form and an
imported one have no seed, so there is one of it. Numbers begin at the configuration's own seeds, so a study that is given more
seeds later keeps what it has.
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import product

from ldmlab.config.compose import load
from ldmlab.config.rules import LEVELS


def with_seeds(jobs: Sequence[Sequence[str]], outside: Sequence[str] = ()) -> list[list[str]]:
    """Each job once per combination of its seeds, equal ones once. Composes each job; raises ConfigError as `load` does.

    outside: words that all jobs need and Hydra keeps to itself, such as hydra.searchpath.
    """
    found: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for job in jobs:
        cfg = load([*outside, *job]).cfg
        trained = {"first_stage": cfg.ae.fit is not None, "denoiser": cfg.ldm.fit is not None, "sampling": True}
        first = {"first_stage": cfg.ae.seed, "denoiser": cfg.ldm.seed, "sampling": cfg.eval.seed}
        varied = [level for level in LEVELS if cfg.seeds[level] > 1 and trained[level]]
        for offsets in product(*(range(cfg.seeds[level]) for level in varied)):
            own = {LEVELS[level]: str(first[level] + n) for level, n in zip(varied, offsets, strict=True)}
            words = [word for word in job if word.partition("=")[0] not in own] + [f"{k}={v}" for k, v in own.items()]
            found.setdefault(tuple(sorted((key, value) for key, _, value in (w.partition("=") for w in words))), words)
    return list(found.values())


def labels(jobs: Sequence[Sequence[str]]) -> list[str]:
    """What tells each job from the others: its words that not all jobs have."""
    shared = set.intersection(*(set(job) for job in jobs))
    return [" ".join(word for word in job if word not in shared) or "the only cell" for job in jobs]


def cells_beside(grid: Mapping[str, str], typed: Sequence[str], first: Collection[str]) -> list[list[str]]:
    """The jobs of a grid beside a study's first one, each with what was typed. first: the options that the first grid goes over.

    The grid's own values count before what was typed, but of an option of the first grid only those that the command line leaves: so
    `ae=pca_f4` narrows both, and a grid that has no such cell has none.
    """
    own, said = values_of([f"{path}={values}" for path, values in grid.items()]), values_of(typed)
    for path in set(own) & set(said) & set(first):
        own[path] = [value for value in own[path] if value in said[path]]
    words = said | own
    return [
        [f"{path}={value}" for path, value in zip(words, chosen, strict=True)] for chosen in product(*words.values())
    ]


def values_of(words: Sequence[str]) -> dict[str, list[str]]:
    """Option → its values, as Hydra's own sweeper reads them."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    found = {}
    for each in OverridesParser.create().parse_overrides(list(words)):
        values = each.sweep_string_iterator() if each.is_sweep_override() else [each.get_value_element_as_str()]
        found[each.get_key_element()] = [str(value) for value in values]
    return found
