"""Whole commands for texts and layouts: train, score, sample, page; killed and resumed; on two processes.

One run reads all four kinds of tokens together, so that each command is paid for once; then each kind goes its way alone.
"""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
from conditioning.outside_models import save
from option_words import replacing
from ranks import finished, killed, started
from ranks import train as train_words

from ldmlab.config.compose import load
from sample import only_samples, sample
from score import score
from train import train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TINY = [
    "debug=tiny", "ae=identity", "data.resolution=16", "data.train_images=64", "data.val_images=16", "ldm.fit.images=32",
    "ldm.fit.batch_size=8", "ldm.fit.warmup=0", "data.fields=[label,caption,boxes]", "sampler.steps=2", "sampler.guidance=2",
    "runtime.threads=1",
]  # fmt: skip
SCORED = [
    "eval.extractor_fit.images=32", "eval.samples=16", "eval.batch_size=8", "eval.reference.images=16",
    "segmenter.fit.images=16", "segmenter.fit.batch_size=8",
]  # fmt: skip
UNSCORED = ["eval=none", "until=samples", "eval.samples=4"]
SMALL = "dim: 32, depth: 1, heads: 1"
ALL = """
conditioner:
  _target_: ldmlab.conditioning.compose.Compose
  _partial_: true
  parts:
    - {{_target_: ldmlab.conditioning.text.Text, _partial_: true, {small}, length: 48, vocab_size: 400, mask: true}}
    - {{_target_: ldmlab.conditioning.layout.Layout, _partial_: true, {small}, objects: 4, vocab_size: 200}}
    - {{_target_: ldmlab.conditioning.frozen_text.ClipText, _partial_: true, model: {clip}, length: 16}}
    - {{_target_: ldmlab.conditioning.frozen_text.T5Text, _partial_: true, model: {t5}, length: 16, mask: true}}
drop: 0.3
label: null
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {kind: save(folder / kind, kind) for kind in ("clip", "t5")}


@pytest.fixture(scope="module")
def words(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of the run with all four."""
    conf = tmp_path_factory.mktemp("conf")
    (conf / "cond").mkdir()
    (conf / "cond" / "tokens.yaml").write_text(ALL.format(small=SMALL, **models))
    return [*TINY, f"hydra.searchpath=[file://{conf}]", "cond=tokens"]


@pytest.fixture(scope="module")
def straight(words: list[str], models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("straight")
    train(load([*words, *scoring(models), f"store={store}"]), "python src/train.py …")
    return store


def scoring(models: dict[str, Path]) -> list[str]:
    return [*SCORED, "eval.metrics=[fid,caption,boxes,clip_score]", f"metric.clip_score.model={models['clip']}"]


def seals(store: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in store.glob("*/*/done.json")}


def test_scores_beside_their_baselines_on_a_page(straight: Path, words: list[str], models: dict[str, Path]) -> None:
    (file,) = straight.glob("scores/*/scores.json")
    found = json.loads(file.read_text())["scores"]
    for name, baseline in (("caption_kind", "commonest"), ("boxes", "commonest"), ("clip_score", "other")):
        assert {name, f"{name}_{baseline}", f"{name}_null"} <= set(found)
    (page,) = (file.read_text() for file in straight.glob("runs/*/index.html"))
    assert "always the commonest" in page and "empty prompt" in page and "empty layout" in page
    before = seals(straight)
    score(
        load([*replacing(words, ["sampler.guidance=3"]), *scoring(models), f"store={straight}"]),
        "python src/score.py …",
    )
    assert before.items() <= seals(straight).items() and len(list(straight.glob("scores/*/done.json"))) == 2
    assert len(list(straight.glob("null_samples/*/done.json"))) == 1  # guidance is nothing to them


def unscored(words: list[str], store: Path, *more: str) -> list[str]:
    return [*words, "eval=none", "until=denoiser", f"store={store}", *more]


def test_killed_and_resumed_it_is_bit_identical(straight: Path, words: list[str], tmp_path: Path) -> None:
    """The tokenizer of this store is trained by another process."""
    store, log = tmp_path / "store", tmp_path / "log"
    first = unscored(words, store, "runtime.checkpoint_seconds=1e-9")
    seen = lambda: list(store.glob("denoiser/*/checkpoints/0*"))  # noqa: E731
    assert killed(seen, 0.0, signal.SIGKILL, log, first) == -signal.SIGKILL
    train(load(unscored(words, store)), "python src/train.py …")
    for name in ("weights", "ema"):
        (one,), (two,) = (list(each.glob(f"denoiser/*/{name}.safetensors")) for each in (straight, store))
        assert one.parent.name == two.parent.name and one.read_bytes() == two.read_bytes()
    cards = [json.loads((file.parent / "card.json").read_text()) for file in (one, two)]
    cpu_of_killed_process = cards[1]["cpu_seconds"]
    assert cards[0]["cpu_seconds"] > 0.1 and cpu_of_killed_process is None  # not known


def test_two_processes_are_one_run(straight: Path, words: list[str], tmp_path: Path) -> None:
    store, log = tmp_path / "store", tmp_path / "log"
    ranks = started(2, train_words, unscored(words, store, "runtime.processes=2"), log)
    assert finished(ranks) == [0, 0], log.read_text()
    found = []
    for root in (straight, store):
        (rows_of,) = root.glob("denoiser/*/metrics.jsonl")
        rows = map(json.loads, rows_of.read_text().splitlines())
        found.append(np.array([row["loss"] for row in rows if row["split"] == "train"]))
    assert len(found[0]) > 0 and np.abs(found[1] / found[0] - 1).max() < 2e-4


@pytest.mark.parametrize("kind", ["text_small", "layout_small", "text_clip", "text_t5"])
def test_each_alone_draws_what_is_asked(kind: str, models: dict[str, Path], tmp_path: Path) -> None:
    store = f"store={tmp_path / 'store'}"
    own = [f"cond.conditioner.model={models[kind.removeprefix('text_')]}"] if kind in ("text_clip", "text_t5") else []
    words = [*TINY, *UNSCORED, f"cond={kind}", *own, store]
    train(load(words), "python src/train.py …")
    before = seals(tmp_path / "store")
    asked = [] if kind == "layout_small" else ["cond.prompt=a large red star on a navy background"]
    sample(only_samples(load([*words, *asked, "n=3", f"out={tmp_path / 'out'}"])), "python src/sample.py …")
    rows = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert len(rows) == 3 and (tmp_path / "out" / "grid.png").exists()
    assert all("a large red star on a navy background" in str(row) for row in rows) == bool(asked)
    assert before.items() <= seals(tmp_path / "store").items()
