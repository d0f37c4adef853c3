"""What the data, the files or the metrics have wrong is found before a stage starts, by `dry_run` too; nothing is written but caches."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from ldmlab.config.compose import load
from ldmlab.errors import UserError
from ldmlab.pipeline.run import prepare


def tars_of_text(folder: Path) -> None:
    for split in ("train", "val"):
        with tarfile.open(folder / f"{split}-0000.tar", "w") as tar:
            for name, content in (("a.jpg", b"a letter"), ("a.cls", b"0")):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def five_bytes(folder: Path) -> None:
    (folder / "fake.safetensors").write_bytes(b"abcde")


def a_file(folder: Path) -> None:
    (folder / "file").touch()


@pytest.mark.parametrize(
    "make,words,said",
    [
        (tars_of_text, "data=shards data.root={here}", r"train-0000\.tar: the first picture .* not a picture that Pillow knows"),
        (five_bytes, "ae.weights={here}/fake.safetensors", r"fake\.safetensors is neither safetensors nor"),
        (None, "ae.weights={here}/missing", r"ae\.weights=.*/missing: no such file or folder\. Give the path of one, or leave it out"),
        (None, "ldm.weights={here}/missing", r"ldm\.weights=.*/missing: no such file or folder\. Give the path of one, or leave it out"),
        (a_file, "store={here}/file", r"store=.*/file is a file\. Name a folder"),
        (None, "eval.samples=5", r"eval\.samples=5: IS needs at least 10 images\. Set eval\.samples=10"),
        (None, "eval.metrics=[kid] eval.samples=9", r"eval\.samples=9: KID needs at least 10 images"),
        (None, "data=shards data.root=pipe:no-such-program", r"data\.root=pipe:no-such-program: .*not found.*Check the address"),
        (None, "data=folder data.root={here}/fotos_é", r"data\.root=.*/fotos_é: no such folder\. Give the folder"),
    ],
    ids=lambda value: value.replace("{here}", "") if isinstance(value, str) and "=" in value and "\\" not in value else "",
)  # fmt: skip
@pytest.mark.parametrize("dry_run", [True, False])
def test_it_is_one_line(
    make: Callable[[Path], None] | None, words: str, said: str, dry_run: bool, tmp_path: Path
) -> None:
    if make is not None:
        make(tmp_path)
    typed = ["debug=tiny", f"dry_run={dry_run}", *words.format(here=tmp_path).split()]
    if not words.startswith("store="):
        typed.append(f"store={tmp_path / 'store'}")
    with pytest.raises(UserError, match=said) as caught:
        prepare(load(typed))
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "store").glob("*/*/done.json"))
