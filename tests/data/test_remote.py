from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from ldmlab.data.base import to_batch
from ldmlab.data.prepare import prepare
from ldmlab.data.remote import RemoteShards
from ldmlab.data.shards import Shards
from ldmlab.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("remote")
    for n in range(48):
        file = root / "source" / "abc"[n % 3] / f"{n:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(n).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file)
    prepare(root / "source", root / "out", 16, val_fraction=0.1, images_per_shard=6, format="png")
    return root / "out"


def stream(out: Path, **options) -> RemoteShards:
    return RemoteShards(f"pipe:cat {out}", 16, str(out / "manifest.json"), **options)


def seen(dataset) -> list[bytes]:
    return [sample["image"].tobytes() for sample in dataset]


def test_it_streams_every_image_once_and_equals_the_local_set(out):
    remote, local = stream(out), Shards(str(out), 16)
    images = seen(remote)
    assert len(images) == remote.count() == len(local)
    assert sorted(images) == sorted(seen(local[i] for i in range(len(local))))
    labels = {sample["image"].tobytes(): sample["label"] for sample in (local[i] for i in range(len(local)))}
    assert all(labels[sample["image"].tobytes()] == sample["label"] for sample in remote)
    assert remote.fingerprint() == local.fingerprint() and remote.class_names == local.class_names == ("a", "b", "c")


def test_the_order_is_a_function_of_seed_and_epoch(out):
    one, two = stream(out), stream(out)
    first = seen(one)
    assert first == seen(two)
    one.set_epoch(1)
    assert seen(one) != first and sorted(seen(one)) == sorted(first)
    one.set_epoch(0)
    assert seen(one) == first
    assert seen(stream(out, seed=1)) != first


def test_ranks_and_workers_are_disjoint_and_complete(out):
    whole = sorted(seen(stream(out)))
    ranks = [stream(out, rank=r, ranks=2) for r in range(2)]
    parts = [seen(rank) for rank in ranks]
    assert [len(part) for part in parts] == [rank.count() for rank in ranks]
    assert not set(parts[0]) & set(parts[1]) and sorted(parts[0] + parts[1]) == whole
    loader = DataLoader(ranks[0], batch_size=4, collate_fn=to_batch, num_workers=2)
    assert sorted(image.numpy().tobytes() for batch in loader for image in batch["image"]) == sorted(parts[0])


def test_resuming_skips_whole_shards(out):
    dataset = stream(out, rank=1, ranks=2)
    dataset.set_epoch(3)
    everything, used = seen(dataset), sum(shard.images for shard in dataset.shards()[:2])
    dataset.set_epoch(3, skip_shards=2)
    assert seen(dataset) == everything[used:] and dataset.count() == len(everything) - used


def test_a_place_for_the_shard_in_the_command(out):
    dataset = RemoteShards(f"pipe:cat {out}/{{shard}} | cat", 16, f"pipe:cat {out}/manifest.json", split="val")
    assert len(seen(dataset)) == len(Shards(str(out), 16, "val"))


def test_cut_altered_and_missing_shards_are_named(out):
    name = stream(out).shards()[0].name
    for command in (
        f"pipe:head -c 4096 {out}/{{shard}}",
        f"pipe:tr '\\0' '\\1' < {out}/{{shard}}",
        f"pipe:cat {out}/no-{{shard}}",
    ):
        with pytest.raises(DataError, match=name):
            seen(RemoteShards(command, 16, str(out / "manifest.json")))


def test_mistakes_are_named(out):
    with pytest.raises(DataError, match=r"is not remote.*data=shards"):
        RemoteShards(str(out), 16, str(out / "manifest.json"))
    with pytest.raises(DataError, match=r"manifest=.*no such file"):
        RemoteShards(f"pipe:cat {out}", 16, str(out / "nothing.json"))
    with pytest.raises(ConfigError, match=r"for 99 processes"):
        stream(out, ranks=99)


def test_a_manifest_cannot_smuggle_a_command(out, tmp_path):
    text = (out / "manifest.json").read_text().replace("train-00000.tar", "x; touch pwned.tar")
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=r"is not a shard name"):
        RemoteShards(f"pipe:cat {out}", 16, str(tmp_path / "manifest.json"))
