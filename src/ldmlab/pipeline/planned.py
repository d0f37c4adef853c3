"""A dry run of an experiment whose data are not on this machine: counts stand in for pictures, for weights nothing does."""

from pathlib import Path
from typing import cast

from hydra.utils import get_object
from omegaconf import DictConfig
from torch import nn

from ldmlab import build
from ldmlab.data.base import ImageDataset


def planned(cfg: DictConfig) -> bool:
    """Whether this is one: `dry_run=true`, `planned` says what the data are, and a folder of theirs is not there."""
    away = [root for root in roots(cfg.data) if not Path(root).expanduser().exists()]
    return bool(cfg.dry_run and cfg.planned is not None and away)


def roots(data: DictConfig) -> list[str]:
    """The folders of a data set on this machine, or of the two of a pair; none of one that is generated or lies elsewhere."""
    nodes = [data, *(data[name] for name in ("train", "val") if isinstance(data.get(name), DictConfig))]
    return [root for node in nodes if isinstance(root := node.get("root"), str) and "://" not in root]


def dataset(cfg: DictConfig, split: str) -> ImageDataset:
    """The stand-in, of the data's resolution."""
    size, flip = cfg.data.resolution, "flip" in cfg.data and cfg.data.flip
    return cast(ImageDataset, build.part(cfg.planned, split=split, resolution=size, flip=flip))


def extractor(cfg: DictConfig) -> nn.Module | None:
    """An extractor of the chosen class without its weights, for what it declares: numbers of features and logits."""
    node = cfg.eval.extractor
    if node is None or node.get("_partial_", False):
        return build.extractor(cfg, ())
    kind = get_object(node["_target_"])
    bare = {"__init__": nn.Module.__init__, "fingerprint": lambda self: "planned"}
    return cast(nn.Module, type(kind.__name__, (kind,), bare)())
