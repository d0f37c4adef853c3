"""docs/guide/sampling.md, executed: every command of the page, small, with what it must leave behind."""

import io
import json
import re
import shlex
import tarfile
from pathlib import Path

import numpy as np
import pytest
from option_words import replacing
from PIL import Image
from whole_commands import run_here

from ldmlab.config.compose import load
from sample import own_words, sample
from train import train

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/guide/sampling.md").read_text()
MOST = 40_000  # bytes of a picture
TINY = [
    "debug=tiny", "ldm.fit.images=16", "ldm.fit.batch_size=8", "ldm.fit.warmup=0", "ldm.fit.cooldown=0", "ldm.fit.lr=0.03", "ldm.fit.ema=0",
    "sampler.steps=2",
    "sampler.guidance=1", "runtime.threads=1",
]  # fmt: skip
SHAPES = [
    *TINY, "ae=pca_f4", "data.resolution=32", "data.train_images=64", "data.val_images=16", "data.cached=false",
    "eval.extractor_fit.images=16", "eval.extractor_fit.batch_size=8", "eval.extractor.width=8",
]  # fmt: skip
PHOTOS = [*TINY, "eval=none", "ae.fit.images=16", "ae.latent_scale.images=8"]


def commands() -> list[list[str]]:
    """The words after `python` of each command of the page."""
    blocks = re.findall(r"^```\n(.*?)^```", PAGE, re.M | re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("python ")]


def experiment_of(words: list[str]) -> str:
    return next(word.partition("=")[2] for word in words if word.startswith("experiment="))


def photographs(folder: Path) -> Path:
    """A data set of shards as they come from elsewhere: random pictures of two classes."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    (folder / "classes.json").write_text('["daisy", "rose"]')
    for split, count in (("train", 16), ("val", 4)):
        with tarfile.open(folder / f"{split}-0000.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for i in range(count):
                file = io.BytesIO()
                Image.fromarray(rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)).save(file, format="jpeg")
                for name, content in ((f"{i:06d}.jpg", file.getvalue()), (f"{i:06d}.cls", str(i % 2).encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return folder


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a small denoiser of each experiment of the page, and photographs."""
    root = tmp_path_factory.mktemp("page")
    photographs(root / "flowers")
    for experiment in sorted({experiment_of(words) for words in commands()}):
        given = ["data.root=/data/flowers"] if experiment.startswith("photos") else []
        words = small([f"experiment={experiment}", *given], root)
        train(load([*words, "until=denoiser"]), "python src/train.py …")
    return root


def small(words: list[str], root: Path) -> list[str]:
    """The same words with a small network, and this folder's photographs and store."""
    placed = [word.replace("/data/flowers", str(root / "flowers")) for word in words]
    own = PHOTOS if experiment_of(words).startswith("photos") else SHAPES
    return replacing([*own, f"store={root / 'store'}"], placed)


def test_each_command_has_its_picture_below() -> None:
    fenced = re.findall(r"^```[^\n]*\n(.*?)^```", PAGE, re.M | re.S)
    lines = [line for block in fenced for line in block.replace("\\\n", " ").splitlines()]
    assert len(lines) == len(commands())  # nothing in a box but commands, and each one is run below
    shown = re.findall(r"^!\[[^\]]+\]\((pictures/[\w.]+)\)$", PAGE, re.M)
    assert (
        len(shown)
        == len(set(shown))
        == len(re.findall(r"^```\n(?:.*?)^```\n\n!\[", PAGE, re.M | re.S))
        == len(commands()) - 1
    )
    for name in shown:
        file = ROOT / "docs/guide" / name
        assert file.stat().st_size <= MOST, name
        assert Image.open(file).format == "PNG"


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(commands())))
def test_a_command_of_the_page_runs(number: int, lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script, *words = commands()[number]
    assert script == "src/sample.py"
    change, rest = own_words([*small(words, lab), f"out={tmp_path}"])
    sample(change(load(rest)), "python src/sample.py …")
    rows = json.loads((tmp_path / "samples.json").read_text())
    texts = (
        2 if any(word.startswith("prompts=") for word in words) else sum(word.startswith("prompt=") for word in words)
    )
    counted = [int(word[2:]) for word in words if word.startswith("n=")]
    assert len(rows) == (counted[0] if counted else 5 * max(1, texts))
    pictures = [np.array(Image.open(tmp_path / row["file"])) for row in rows]
    assert all(picture.std() > 0 for picture in pictures)
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)
    asked = next((word[6:].split(",") for word in words if word.startswith("seeds=")), [])
    if "seeds=1,2,3,4,5" in words:
        assert {str(row["seed"]) for row in rows} == set(asked)
        assert f": {', '.join(asked)}" in capsys.readouterr().out
    inside = Image.open(tmp_path / rows[0]["file"]).text  # type: ignore[attr-defined]
    assert inside["ldmlab seed"] == str(rows[0]["seed"]) and inside["ldmlab command"] == "python src/sample.py …"
    assert Image.open(tmp_path / "conditions.png").width > 128 * 5


@pytest.mark.slow
def test_known_pixels_stay_and_a_start_is_kept(lab: Path, tmp_path: Path) -> None:
    """A hole is filled and nothing else; at a small strength the first stage's answer to the picture is what remains."""
    inputs = ROOT / "docs/guide/inputs"
    words = small(["experiment=photos64_inpaint", "data.root=/data/flowers", "seeds=1,2"], lab)
    change, rest = own_words(
        [*words, f"image={inputs / 'photo.png'}", f"mask={inputs / 'mask.png'}", f"out={tmp_path / 'a'}"]
    )
    sample(change(load(rest)), "")
    photo, hole = np.array(Image.open(inputs / "photo.png")), np.array(Image.open(inputs / "mask.png")) > 0
    one, two = (np.array(Image.open(tmp_path / "a" / f"0000{k}.png")) for k in (0, 1))
    assert np.array_equal(one[~hole], photo[~hole]) and not np.array_equal(one[hole], two[hole])
    far = {}
    for strength in ("0.02", "1"):
        words = small(
            ["experiment=task_text", f"image={inputs / 'scribble.png'}", f"strength={strength}", "seeds=1", "prompt="],
            lab,
        )
        change, rest = own_words([*replacing(words, ["sampler.steps=100"]), f"out={tmp_path / strength}"])
        sample(change(load(rest)), "")
        drawn = np.array(Image.open(tmp_path / strength / "00000.png")).astype(float)
        begun = np.array(Image.open(inputs / "scribble.png").resize((32, 32), Image.Resampling.BOX)).astype(float)
        far[strength] = np.abs(drawn - begun).mean()
    assert far["0.02"] < 25 < far["1"]


@pytest.mark.slow
def test_a_seed_draws_its_picture_again(lab: Path, tmp_path: Path) -> None:
    words = small(["experiment=demo", "cond.label=star"], lab)
    for name, more in (
        ("all", ["seeds=5,6"]),
        ("one", ["seeds=6"]),
        ("ends", ["seeds=5,6", "interpolate=seeds", "n=3"]),
    ):
        change, rest = own_words([*words, *more, f"out={tmp_path / name}"])
        sample(change(load(rest)), "")
    files = [
        tmp_path / "all" / "00001-star.png",
        tmp_path / "one" / "00000-star.png",
        tmp_path / "ends" / "00002-star.png",
    ]
    first, again, end = (np.array(Image.open(file)).astype(int) for file in files)
    assert np.array_equal(first, again) and np.abs(end - first).max() <= 1


@pytest.mark.slow
def test_between_two_texts_the_ends_are_the_texts(lab: Path, tmp_path: Path) -> None:
    words = small(
        ["experiment=task_text", "seeds=1", "prompt=a red star", "prompt=a blue disc on a navy background"], lab
    )
    for name, more in (("each", []), ("way", ["interpolate=conditions", "n=3"])):
        change, rest = own_words([*words, *more, f"out={tmp_path / name}"])
        sample(change(load(rest)), "")
    each, way = (
        [np.array(Image.open(file)).astype(int) for file in sorted((tmp_path / name).glob("0*.png"))]
        for name in ("each", "way")
    )
    assert not np.array_equal(each[0], each[1])
    assert np.abs(each[0] - way[0]).max() <= 1 and np.abs(each[1] - way[2]).max() <= 1


@pytest.mark.slow
def test_a_word_that_was_never_met_is_refused(lab: Path) -> None:
    """By the command itself: one line, exit code 1, and no weights are read."""
    words = small(["experiment=task_text", "prompt=a large red elephant"], lab)
    done = run_here("sample", words)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    assert "'elephant' stands in no caption" in done.stderr
    done = run_here("sample", small(["experiment=task_text", f"prompt={'a red star ' * 30}"], lab))
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "has more tokens than this denoiser reads, cond.conditioner.length=" in done.stderr


@pytest.mark.slow
def test_a_sign_that_was_never_met_is_drawn_and_noted(lab: Path, tmp_path: Path) -> None:
    for prompt, noted in (
        ("a large red star, on a navy background", True),
        ("a large red star on a navy background", False),
    ):
        done = run_here(
            "sample", [*small(["experiment=task_text", f"prompt={prompt}"], lab), f"out={tmp_path / str(noted)}"]
        )
        assert done.returncode == 0, done.stderr
        assert (", stands in no caption that this denoiser learnt from" in " ".join(done.stdout.split())) == noted
