"""Turn a folder of pictures into shards and a manifest, or check that they are still what they were.

    python src/prepare.py data.root=/pictures data.resolution=256 out=/shards/pictures
    python src/prepare.py out=/shards/pictures verify=true

Class sub-folders become labels. A kill at any moment loses at most one shard; the same command goes on. Afterwards:
python src/train.py data=shards data.root=/shards/pictures data.resolution=256
"""

from ldmlab.cli import command
from ldmlab.config.compose import Composed
from ldmlab.errors import ConfigError


def prepare(composed: Composed, words: str) -> None:
    from ldmlab.data.prepare import prepare, verify

    cfg = composed.cfg
    if cfg.out is None:
        raise ConfigError("out is not set: the folder of the shards. Give it as out=/shards/name.")
    if cfg.verify:
        verify(cfg.out)
        return
    if not cfg.data["_target_"].endswith(".Folder"):
        raise ConfigError("prepare.py makes shards from a folder of pictures: data=folder data.root=/pictures.")
    data, how = cfg.data, cfg.prepare
    prepare(
        data.root, cfg.out, data.resolution, val_fraction=data.val_fraction, test_fraction=data.test_fraction,
        labels=data.labels, images_per_shard=how.images_per_shard, format=how.format, quality=how.quality,
        max_unreadable=data.max_unreadable, licence=how.licence,
    )  # fmt: skip


def menu(words: list[str]) -> list[str]:
    """Shards are made from a folder of pictures; to check them it is not needed."""
    return [] if "verify=true" in words else ["data=folder"]


if __name__ == "__main__":
    command(prepare, defaults=menu)
