"""Hydra's composition of the words of a command line, what the groups give remembered.

Words that choose an option of a group (`ae=kl_f8`) decide which yamls are read and merged, which takes a fifth of a second. Words
that set a value (`ae.fit.lr=1e-4`) are laid over the result, which takes a hundredth. The first part is kept while no yaml changes,
since much composes again and again with the same groups: the cells of a sweep, a search for options that fit, a notebook.
"""

import copy
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml
from hydra import compose, initialize_config_dir
from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf, open_dict

from ldmlab.config import search
from ldmlab.config.schema import RunConfig
from ldmlab.config.words import Word, parse

if yaml.__with_libyaml__:  # OmegaConf reads with this loader; the one in C reads the same in a tenth of the time
    yaml.SafeLoader = yaml.CSafeLoader

# Two things that Hydra makes with every composition, a quarter of its time, and seldom needs. A table of all choices for each yaml, for
# names in its list of defaults that refer to them (`- ${ae}`); and a copy of every schema, though a schema is copied when it is read.
_table_of_choices = defaults_list._create_interpolation_map
defaults_list._create_interpolation_map = lambda overrides, defaults, self_added: (  # type: ignore[assignment]
    _table_of_choices(overrides, defaults, self_added)
    if any(each.is_interpolation() for each in defaults)
    else DictConfig({})
)
ConfigStore.__deepcopy__ = lambda self, memo: self  # type: ignore[attr-defined]

State = tuple[tuple[str, int, int], ...]  # of files: path, time of the last change in ns, size in bytes


def whole(words: Sequence[Word]) -> tuple[DictConfig, DictConfig]:
    """(composition, Hydra's own node), both new. Raises what Hydra and OmegaConf raise."""
    register_schema()
    return _by_hydra(tuple(word.text for word in words))


def remembered(words: Sequence[Word]) -> tuple[DictConfig, DictConfig]:
    """(composition, Hydra's own node), equal to `whole`'s but for what Hydra's node takes from values: it is that of the groups
    alone, and shared; nobody may change it. Raises what `whole` raises.
    """
    texts = [word.text for word in words]
    values = [word for word in words if _sets_value(word, texts)]
    chosen = tuple(word.text for word in words if word not in values)
    if len(search.folders(texts)) > 1:  # a user's folder may be anywhere and hold anything: its files are not watched
        return whole(words)
    register_schema()
    groups, hydra = _of_groups(chosen, str(search.CONF), _state(search.CONF), _state(search.ROOT / "sweeps"))
    cfg = copy.deepcopy(groups)
    ConfigLoaderImpl._apply_overrides_to_config([parse(word.text) for word in values], cfg)
    return cfg, hydra


def register_schema() -> None:
    """Make `RunConfig` and the group `sweeps/` at the root known to Hydra; harmless when done twice.

    (The root itself as a search path would make a group of every folder in it: of `store/`, after the first run.)
    """
    _register(_state(search.ROOT / "sweeps"))


@functools.lru_cache(maxsize=1)  # the store holds one root's studies
def _register(studies: State) -> None:
    ConfigStore.instance().store(name="base_schema", node=RunConfig)
    for file in (Path(path) for path, _, _ in studies):
        ConfigStore.instance().store(group="sweeps", name=file.stem, node=OmegaConf.load(file), package="_global_")


def _sets_value(word: Word, texts: Sequence[str]) -> bool:
    """Whether a word decides nothing of which yamls are read. Hydra's own options, and what is added with one +, are left to Hydra."""
    key = word.text.partition("=")[0].removeprefix("++")
    return not (key.startswith(("+", "hydra")) or "/" in key or "@" in key or search.is_group(key, texts))


@functools.lru_cache(maxsize=64)
def _of_groups(chosen: tuple[str, ...], folder: str, *files: State) -> tuple[DictConfig, DictConfig]:
    return _by_hydra(chosen)


def _by_hydra(texts: tuple[str, ...]) -> tuple[DictConfig, DictConfig]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(search.CONF), version_base="1.3"):
        cfg = compose("config", overrides=list(texts), return_hydra_config=True)
    hydra = cfg.hydra
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg, hydra


def _state(folder: Path) -> State:
    return tuple(sorted(_yamls(str(folder)))) if folder.is_dir() else ()


def _yamls(folder: str) -> Iterator[tuple[str, int, int]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _yamls(entry.path)
            elif entry.name.endswith(".yaml"):
                status = entry.stat()
                yield entry.path, status.st_mtime_ns, status.st_size
