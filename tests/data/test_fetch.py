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


@pytest.mark.parametrize(
    ("root", "why"),
    [
        ("http://127.0.0.1:9/set", "Failed to connect|Couldn't connect|refused"),
        ("pipe:echo first >&2; echo no such host >&2; exit 3; #", "no such host"),
        ("pipe:exit 3; #", "exit code 3"),
        ("pipe:no-such-program-here", "not found"),
    ],
)
def test_an_address_that_fails_is_one_clear_line(root, why, tmp_path, capfd) -> None:
    with pytest.raises(DataError, match=why) as caught:
        Shards(root, 16, cache=tmp_path)
    said = str(caught.value)
    assert said.startswith(f"data.root={root}: its manifest.json cannot be read") and "\n" not in said
    assert "Check the address" in said and "bufsize" not in said and "['" not in said
    assert capfd.readouterr() == ("", "")


def test_a_page_that_is_not_there_is_one_clear_line(served, tmp_path, capfd) -> None:
    address, _ = served
    with pytest.raises(DataError, match=r"404.*Check the address"):
        Shards(f"{address}/nowhere", 16, cache=tmp_path)
    assert capfd.readouterr() == ("", "")


def test_a_program_that_is_not_installed_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for root, program in (("s3://bucket/set", "aws"), ("http://127.0.0.1:9/set", "curl")):
        with pytest.raises(DataError, match=rf"{program} is not installed"):
            Shards(root, 16, cache=tmp_path)


def test_a_command_that_fails_after_all_bytes_came_is_an_error(out, tmp_path) -> None:
    failing = f"pipe:cat '{out}/{{shard}}'; echo the connection broke >&2; exit 5"
    with pytest.raises(DataError, match="the connection broke"):
        Shards(failing, 16, cache=tmp_path)
