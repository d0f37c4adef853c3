"""Whole commands of pictures larger than trained, and of two models in a row; the commands of docs/guide/large.md."""

import csv
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from conditioning.outside_models import save
from PIL import Image

from ldmlab.config.compose import load
from ldmlab.errors import ConfigError
from ldmlab.metrics.window_borders import border_ratio
from ldmlab.pipeline.context import Context
from ldmlab.pipeline.launch import make_accelerator
from ldmlab.pipeline.run import execute, prepare
from ldmlab.reports.publish import headline, make_page
from sample import own_words, sample

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    "debug=tiny", "data.resolution=16", "data.train_images=64", "runtime.threads=1", "ldm.fit.images=32", "ae.fit.images=32",
    "eval.samples=2",
]  # fmt: skip
SCORED = ["eval.samples=40", "eval.extractor.width=8", "eval.extractor_fit.images=64", "eval.reconstructions=16"]
SEMANTIC = ["cond=semantic", "data.fields=[label,segmentation]", "eval=none"]


def merged(*words: str) -> list[str]:
    """Of two words for one option the later."""
    return list({word.partition("=")[0]: word for word in words}.values())


def made(root: Path, *words: str, until: str = "samples") -> tuple[Path, dict]:
    """The folder of the last samples (scores …) of a command, and the run's record."""
    own = merged(*TINY, f"store={root}", f"until={until}", *words)
    folder = execute(load(own), "python src/train.py " + shlex.join(own))
    assert folder is not None
    record = json.loads((folder / "run.json").read_text())
    stage = next(s for s in reversed(record["stages"]) if s["stage"] == until)
    return (folder / stage["folder"]).resolve(), record


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("large")
    made(root, *SEMANTIC)
    return root


def pictures(folder: Path) -> np.ndarray:
    found: np.ndarray = np.load(folder / "images.npy")
    return found


def test_whole_in_windows_and_in_tiles_are_three_results_of_one_denoiser(store: Path) -> None:
    large = [*SEMANTIC, "size=32x48"]
    words = [[], ["large.window=16"], ["large.window=16", "large.weights=mean"], ["large.tile=16"]]
    folders = [made(store, *large, *own)[0] for own in words]
    whole, windows, mean, tiles = (pictures(folder) for folder in folders)
    assert whole.shape == (2, 32, 48, 3) and len({folder.name for folder in folders}) == 4
    assert all((whole != other).any() for other in (windows, mean, tiles)) and (windows != mean).any()
    assert len(list(store.glob("denoiser/*/done.json"))) == 1
    assert np.load(folders[0] / "conditions-pictures.npy").shape == (2, 32, 48, 3)
    one = made(store, *large, "large.window=16", "eval.batch_size=2")[0]  # pictures at once change nothing
    assert one == folders[1]


def test_every_guidance_stands_beside_windows(store: Path, tmp_path: Path) -> None:
    picture, clip = tmp_path / "p.png", save(tmp_path / "clip", "clip", seed=3)
    Image.fromarray(np.full((40, 50, 3), 200, np.uint8)).save(picture)
    kinds = {
        "classifier": ["guidance.classifier.fit.images=32"],
        "image": [f"guidance.image.file={picture}", "guidance.image.scale=0.05"],
        "clip": [f"guidance.clip.model={clip}", "guidance.clip.prompt=a red star", "guidance.clip.scale=0.1"],
    }
    large = [*SEMANTIC, "size=24x32"]
    for mode in ([], ["large.window=16"]):
        plain = pictures(made(store, *large, *mode)[0])
        for kind, own in kinds.items():
            found = pictures(made(store, *large, *mode, f"guidance={kind}", *own)[0])
            assert found.shape == plain.shape and (found != plain).any(), (kind, mode)


@pytest.mark.parametrize("kind", ["text", "superres", "inpaint", "class_label"])
def test_every_guidance_stands_beside_what_a_person_gives(kind: str, store: Path, tmp_path: Path) -> None:
    """A text with its comma, a small picture, a hole, a picture to begin from: three guides at once; beside the text each one matters."""
    pixels, hole = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8), np.zeros((16, 16), np.uint8)
    hole[4:10, 6:14] = 255
    photo, low, mask = (tmp_path / f"{name}.png" for name in ("photo", "low", "mask"))
    for file, array in ((photo, pixels), (low, pixels[::2, ::2]), (mask, hole)):
        Image.fromarray(array).save(file)
    given = {
        "text": ["prompt=a red disc, on a navy background"], "superres": ["cond.conditioner.factor=2", f"image={low}"],
        "inpaint": [f"image={photo}", f"mask={mask}"], "class_label": ["cond.label=star", f"image={photo}", "strength=0.7"],
    }  # fmt: skip
    guides = {
        "image": [f"guidance.image.file={photo}", "guidance.image.scale=0.05"],
        "clip": [f"guidance.clip.model={save(tmp_path / 'clip', 'clip', seed=3)}", "guidance.clip.prompt=a red star"],
        "classifier": ["guidance.classifier.fit.images=32", "cond.label=star"],
    }

    def drawn(*kinds: str) -> np.ndarray:
        asked = [
            *given[kind],
            f"guidance=[{','.join(kinds)}]",
            *(word for each in kinds for word in guides.get(each, ())),
        ]
        tiny = [
            "eval=none",
            "data.fields=[label,caption]",
            f"cond={kind}",
            f"store={store}",
            "until=samples",
            "seeds=1",
        ]
        change, rest = own_words(merged(*TINY, *tiny, *asked))
        folder = execute(change(load(rest)), "")
        assert folder is not None
        stages = json.loads((folder / "run.json").read_text())["stages"]
        return pictures((folder / [stage for stage in stages if stage["stage"] == "samples"][-1]["folder"]).resolve())

    plain, all_three = drawn("none"), drawn(*guides)
    assert all_three.shape == plain.shape and (all_three != plain).any()
    for left_out in guides if kind == "text" else ():
        assert (drawn(*(name for name in guides if name != left_out)) != all_three).any(), left_out
    if kind == "inpaint":
        assert np.array_equal(all_three[0][hole == 0], pixels[hole == 0])


def test_borders_are_a_score_and_parts_are_what_features_see(store: Path) -> None:
    words = ["cond=semantic", "data.fields=[label,segmentation]", *SCORED, "size=32x32", "large.window=16",
             "eval.metrics=[fid,window_borders]", "metric.window_borders.window=16", "metric.window_borders.overlap=8"]  # fmt: skip
    folder, record = made(store, *words, until="scores")
    found = json.loads((folder / "scores.json").read_text())
    samples = next(s for s in reversed(record["stages"]) if s["stage"] == "samples")
    images = pictures((store / "runs" / record["name"] / samples["folder"]).resolve())
    assert found["scores"]["window_borders"]["value"] == pytest.approx(border_ratio(images, 16, 8, 4).mean())
    page = make_page(store / "runs" / f"{record['name']}-{record['id']}").read_text()
    assert "across borders / elsewhere" in page and "32x32 in 9 windows" in page
    assert found["card"]["size"].startswith("32x32 in 9 windows of 16") and found["card"]["resolution"] == 16


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["size=30x32"], r"size=30x32: height and width must be multiples of 8.* Set size=32x32"),
        (["size=32x32", "large.window=12"], r"large\.window=12 must be a multiple of 8"),
        (["size=32x32", "large.window=32"], r"large\.window=32: one window holds the whole picture"),
        (["size=32x32", "large.window=16", "large.overlap=16"], r"large\.overlap=16 must be a multiple of f=4 below"),
        (["large.overlap=8"], r"large\.overlap=8 is one of windows"),
        (["size=32x32", "large.tile=20"], r"large\.tile=20 must be a multiple of 4 f = 16"),
        (["size=32x32", "eval.noise=pixels"], r"eval\.noise=pixels is drawn at data\.resolution"),
        (["size=32by32"], r"size must be HEIGHTxWIDTH in pixels"),
    ],
)
def test_what_cannot_be_is_said_before_anything_starts(words: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        prepare(load(merged(*TINY, *SEMANTIC, f"store={tmp_path}", *words)))


def enlarger(store: Path) -> str:
    """The id of a run of super-resolution from 16 to 32 pixels."""
    return str(
        made(store, "data.resolution=32", "cond=superres", "cond.conditioner.factor=2", "eval=none", until="denoiser")[
            1
        ]["id"]
    )


def drawn(folder: Path, *words: str) -> np.ndarray:
    """The one picture that sample.py leaves in a folder, uint8 [H, W, 3]."""
    change, rest = own_words(["seeds=1", f"out={folder}", *words])
    sample(change(load(merged(*TINY, *rest))), "")
    (file,) = folder.glob("0*.png")
    return np.array(Image.open(file))


def test_a_persons_files_decide_pictures_of_another_size(store: Path, tmp_path: Path) -> None:
    """A map, a small picture and a hole of 24x32 (height x width), whole and through windows; what is known stays to the pixel."""
    rng = np.random.default_rng(0)
    photo, hole = rng.integers(0, 256, (24, 32, 3)).astype(np.uint8), np.zeros((24, 32), np.uint8)
    hole[4:14, 10:30] = 255
    arrays = {
        "map": photo[..., 0] % 11,
        "other": photo[..., 1] % 11,
        "low": photo[:12, :16],
        "photo": photo,
        "mask": hole,
    }
    files = {name: tmp_path / f"{name}.png" for name in arrays}
    for name, array in arrays.items():
        Image.fromarray(array).save(files[name])
    inpaint, learnt = ["cond=inpaint", "eval=none"], [*SEMANTIC, "ldm.fit.lr=0.03", "ldm.fit.ema=0", "ldm.fit.warmup=0"]
    enlarger(store)
    for words in (inpaint, learnt):
        made(store, *words, until="denoiser")
    here = [f"store={store}", "size=24x32"]
    superres = [
        "data.resolution=32",
        "cond=superres",
        "cond.conditioner.factor=2",
        "eval=none",
        f"image={files['low']}",
    ]
    for mode in ([], ["large.window=16"]):
        at = tmp_path / "-".join(["whole", *mode])
        one, two = (drawn(at / name, *here, *mode, *learnt, f"semantic={files[name]}") for name in ("map", "other"))
        assert one.shape == two.shape == (24, 32, 3) and (one != two).any()
        assert drawn(at / "low", *here, *mode, *superres).shape == (24, 32, 3)
        filled = drawn(at / "hole", *here, *mode, *inpaint, f"image={files['photo']}", f"mask={files['mask']}")
        assert np.array_equal(filled[hole == 0], photo[hole == 0]) and (filled[hole > 0] != photo[hole > 0]).any()
    with pytest.raises(ConfigError, match=r"takes 16x12\. Make it that size"):
        drawn(tmp_path / "no", *here, *superres[:-1], f"image={files['photo']}")


def test_two_models_in_a_row_are_scored_as_one(store: Path) -> None:
    small = ["cond=class_label", *SCORED, "eval.metrics=[fid,label_agreement]"]
    first, _ = made(store, *small)
    folder, record = made(store, *small, f"then={enlarger(store)}", until="scores")
    found, samples = (
        json.loads((folder / "scores.json").read_text()),
        [s for s in record["stages"] if s["stage"] == "samples"],
    )
    final = store / "samples" / samples[-1]["folder"].rpartition("/")[2]
    assert pictures(final).shape == (40, 32, 32, 3) and len(samples) == 2
    assert np.array_equal(np.load(final / "conditions-pictures.npy"), pictures(first))
    conditions = [json.loads((each / "conditions.json").read_text()) for each in (first, final)]
    assert conditions[0]["label"] == conditions[1]["label"] and conditions[1]["enlarged"] == samples[0]["id"]
    card = found["card"]
    assert (
        card["resolution"] == 32 and card["first"]["samples"] == samples[0]["id"] and card["first"]["resolution"] == 16
    )
    assert 0 <= found["scores"]["label_agreement"]["value"] <= 1 and found["scores"]["fid"]["n"] == 40
    records = [json.loads(path.read_text()) for path in store.glob("runs/*/run.json")]
    other = next(record["id"] for record in records if record["choices"]["cond"] == "semantic")
    with pytest.raises(ConfigError, match="is no super-resolution model"):
        prepare(load(merged(*TINY, f"store={store}", *small, f"then={other}")))


def test_two_models_in_a_row_stand_beside_a_bicubic_enlargement(store: Path) -> None:
    """By hand: the first model's samples by Pillow's bicubic filter, the Fréchet distance by SciPy's square root of a matrix."""
    words = merged(
        *TINY,
        "cond=class_label",
        *SCORED,
        "eval.metrics=[fid,label_agreement]",
        f"store={store}",
        f"then={enlarger(store)}",
    )
    folder, record = made(store, *words, until="scores")
    scores, card = (json.loads((folder / "scores.json").read_text())[part] for part in ("scores", "card"))
    (first,) = store.glob(f"samples/*-{card['first']['samples']}")
    enlarged = [Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC) for image in pictures(first)]
    large_NHWC = np.stack([np.array(image) for image in enlarged])

    plan = prepare(load(words))
    ctx = Context(plan.resolved.cfg, plan, make_accelerator("cpu", 60)).of(plan.second)
    with torch.no_grad():
        features_ND, logits_NK = plan.second.named("extractor").load(ctx)(
            torch.from_numpy(large_NHWC).permute(0, 3, 1, 2)
        )
    (reference,) = store.glob(f"reference/*-{card['reference']}")
    sets = [features_ND.double().numpy(), np.load(reference / "features.npz")["features"].astype(float)]
    (one_D, other_D), (one_DD, other_DD) = [each.mean(axis=0) for each in sets], [np.cov(each.T) for each in sets]
    root_DD = scipy.linalg.sqrtm(one_DD @ other_DD).real
    distance = ((one_D - other_D) ** 2).sum() + np.trace(one_DD + other_DD - 2 * root_DD)
    row, own = (scores[name]["value"] for name in ("fid_bicubic", "fid"))
    assert abs(row - distance) < 0.2 * abs(row - own)  # Pillow rounds twice, which moves it by less
    labels = json.loads((first / "conditions.json").read_text())["label"]
    agreed = (logits_NK.argmax(dim=1).numpy() == np.array(labels)).mean()
    assert scores["label_agreement_bicubic"]["value"] == pytest.approx(agreed)

    shown = np.load(folder / "sets.npz")
    assert np.abs(shown["bicubic"].astype(int) - large_NHWC[:10]).mean() < 1  # Pillow clips after each direction
    final = [stage for stage in record["stages"] if stage["stage"] == "samples"][-1]
    assert np.array_equal(shown["samples"], pictures(store / "samples" / Path(final["folder"]).name)[:10])
    run = store / "runs" / f"{record['name']}-{record['id']}"
    assert re.search(r"FID \S+ \[.*   bicubic \S+ \[", headline(run))
    page = make_page(run)
    (listed,) = [line for line in csv.DictReader((page.parent / "table.csv").open()) if line["stage"] == "scores"]
    assert float(listed["fid_bicubic"]) == row and float(listed["fid"]) == own
    assert "bicubic" in page.read_text()


def test_a_persons_seeds_draw_both_of_two_models(store: Path, tmp_path: Path) -> None:
    """seeds=7,9 are printed and kept, and one of them alone draws its picture again."""
    made(store, "cond=class_label", "eval=none", until="denoiser")
    words = [
        *merged(*TINY, "cond=class_label", "eval=none"),
        f"store={store}",
        f"then={enlarger(store)}",
        "cond.label=star",
    ]
    for name, seeds in (("both", "seeds=7,9"), ("one", "seeds=9")):
        change, rest = own_words([*words, seeds, f"out={tmp_path / name}"])
        sample(change(load(rest)), "")
    both, one = (json.loads((tmp_path / name / "samples.json").read_text()) for name in ("both", "one"))
    assert [row["seed"] for row in both] == [7, 9] and [row["seed"] for row in one] == [9]
    again, first = (
        np.array(Image.open(tmp_path / name / rows[-1]["file"])) for name, rows in (("both", both), ("one", one))
    )
    assert again.shape == (32, 32, 3) and np.array_equal(again, first)


def commands() -> list[str]:
    """The lines of docs/guide/large.md that draw samples."""
    text = (ROOT / "docs/guide/large.md").read_text()
    blocks = re.findall(r"^```\n(.*?)^```", text, re.M | re.S)
    lines = [re.sub(r"\s{2,}#.*", "", line) for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line.startswith("python src/sample.py")]


@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_guide_draws_its_picture(command: str, store: Path, tmp_path: Path) -> None:
    """At debug=tiny and an eighth of the size, with whatever it names put in place."""
    picture = tmp_path / "p.png"
    Image.fromarray(np.full((40, 50, 3), 200, np.uint8)).save(picture)
    words = [word for word in shlex.split(command)[2:] if not word.startswith(("n=", "ae=", "ldm="))]
    model = save(tmp_path / "clip", "clip", seed=3)
    put = {"photo.png": str(picture), "clip-vit-base-patch16": str(model), "then=<run>": "then="}
    for old, new in put.items():
        words = [word.replace(old, new) for word in words]
    words = [f"then={enlarger(store)}" if word == "then=" else word for word in words]
    words = [
        re.sub(r"^size=.*", "size=24x32", re.sub(r"^(large\.(?:window|tile))=.*", r"\1=16", word)) for word in words
    ]
    own = [
        *TINY,
        "sampler.steps=2",
        "guidance.classifier.fit.images=32",
        f"store={store}",
        "until=samples",
        "eval=none",
    ]
    if "guidance=classifier" not in words:
        own = [word for word in own if not word.startswith("guidance.classifier")]
    planned = "dry_run=true" in words
    assert (execute(load(merged(*words, *own)), command) is None) == planned
