"""Turn pictures and what stands beside them into shards and a manifest, or check that they are still what they were.

    python src/prepare.py data.root=/pictures data.resolution=256 out=/shards/pictures
    python src/prepare.py data=coco data.root=/coco 'data.fields=[boxes,caption]' out=/shards/coco
    python src/prepare.py out=/shards/pictures verify=true

Class sub-folders become labels; every other field of the data goes along (docs/guide/data.md). A kill at any moment loses at
most one shard; the same command goes on. Afterwards:
python src/train.py data=shards data.root=/shards/pictures data.resolution=256
"""

from ldmlab import build
from ldmlab.cli import command
from ldmlab.config.compose import Composed
from ldmlab.errors import ConfigError


def prepare(composed: Composed, words: str) -> None:
    from ldmlab.data.encoding import Encoding
    from ldmlab.data.pictures import PictureFiles
    from ldmlab.data.prepare import pack, verify

    cfg = composed.cfg
    if cfg.out is None:
        raise ConfigError("out is not set: the folder of the shards. Give it as out=/shards/name.")
    if cfg.verify:
        verify(cfg.out)
        return
    data, how, kind = cfg.data, cfg.prepare, build.class_of(cfg.data)
    if not issubclass(kind, PictureFiles):
        raise ConfigError(
            "prepare.py makes shards from files: data=folder data.root=/pictures, coco, open_images, imagenet, places, lsun, ffhq or "
            "celebahq_25k."
        )
    layout = kind.layout(**build.options_for(data, kind.layout))
    encoding = Encoding(how.format, how.quality, data.channels, data.bits)
    pack(layout.listing(), cfg.out, data.resolution, encoding, how.images_per_shard, data.max_unreadable, how.licence)


def menu(words: list[str]) -> list[str]:
    """Shards are made from a folder of pictures; to check them it is not needed."""
    return [] if "verify=true" in words else ["data=folder"]


if __name__ == "__main__":
    command(prepare, defaults=menu)
