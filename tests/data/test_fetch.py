"""Remote shards are copied once, checked, and then are the local set."""

import http.server
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldmlab.data.prepare import prepare
from ldmlab.data.shards import Shards
from ldmlab.errors import DataError


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("far away")
    for n in range(24):
        file = root / "source" / "ab"[n % 2] / f"{n:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(n).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file)
    prepare(root / "source", root / "out", 16, val_fraction=0.2, images_per_shard=6, format="png")
    return root / "out"


@pytest.fixture
def served(out: Path) -> Iterator[tuple[str, list[str]]]:
    """An address of the folder, and the paths that were asked for."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            asked.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(out)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()


def equal(a: Shards, b: Shards) -> bool:
    same = all(np.array_equal(a[i]["image"], b[i]["image"]) and a[i]["label"] == b[i]["label"] for i in range(len(b)))
    return len(a) == len(b) > 0 and same and a.fingerprint() == b.fingerprint() and a.class_names == b.class_names


@pytest.mark.parametrize("split", ["train", "val"])
def test_over_http_it_is_the_local_set_and_is_fetched_once(out, served, tmp_path, split) -> None:
    address, asked = served
    assert equal(Shards(address, 16, split, cache=tmp_path), Shards(str(out), 16, split))
    fetched = [path for path in asked if path.endswith(".tar")]
    assert fetched and all(split in path for path in fetched)
    asked.clear()
    assert equal(Shards(address, 16, split, cache=tmp_path), Shards(str(out), 16, split))
    assert asked == ["/manifest.json"]


def test_through_a_command(out, tmp_path) -> None:
    assert equal(Shards(f"pipe:cat '{out}/{{shard}}'", 16, cache=tmp_path), Shards(str(out), 16))


def test_a_cut_or_altered_shard_is_named_and_not_kept(out, tmp_path) -> None:
    name = sorted(file.name for file in out.glob("train-*.tar"))[0]
    cut = f"pipe:case {{shard}} in manifest.json) cat '{out}/{{shard}}';; *) head -c 2048 '{out}/{{shard}}';; esac"
    with pytest.raises(DataError, match=rf"{name}.*is cut off or altered: 2048 bytes came"):
        Shards(cut, 16, cache=tmp_path)
    assert not list(tmp_path.rglob("*.tar")) and not list(tmp_path.rglob(".*.tar.part"))
    assert equal(Shards(f"pipe:cat '{out}/{{shard}}'", 16, cache=tmp_path), Shards(str(out), 16))


def test_an_address_that_is_not_there_is_named(tmp_path) -> None:
    with pytest.raises(DataError, match=r"manifest.json cannot be read"):
        Shards("http://127.0.0.1:9/set", 16, cache=tmp_path)
