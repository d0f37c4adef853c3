"""Whole commands on formats of others: trained here → exported → imported: the same samples and scores; official files → samples."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interop.official_layouts import (
    SCHEDULE,
    Shapes,
    UNetKind,
    bert_embedder,
    bert_tokenizer,
    differing,
    module_of,
    random_state,
    schedule,
    spatial_rescaler,
    unet,
    whole_model,
)
from option_words import replacing

from export import export
from ldmlab.config.compose import load
from ldmlab.errors import UserError
from ldmlab.interop import denoisers
from ldmlab.pipeline.run import prepare
from sample import only_samples, sample
from train import train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TINY = [
    "debug=tiny", "ae=identity", "data.resolution=16", "data.train_images=32", "data.val_images=16", "ldm.fit.images=32",
    "ldm.fit.batch_size=8", "ldm.fit.warmup=0", "sampler.steps=2", "sampler.guidance=2", "runtime.threads=1",
    "eval.extractor_fit.images=32", "eval.samples=8", "eval.batch_size=8", "eval.reference.images=16", "eval.metrics=[fid]",
]  # fmt: skip


def command(run: Any, name: str, *words: str) -> None:
    run(load(list(words)), f"python src/{name}.py …")


def results(store: Path, stage: str) -> list[Path]:
    """Finished folders of a stage, oldest first."""
    return sorted(
        (file.parent for file in store.glob(f"{stage}/*/done.json")), key=lambda path: path.stat().st_mtime_ns
    )


def images(store: Path) -> list[np.ndarray]:
    return [np.load(folder / "images.npy") for folder in results(store, "samples")]


def scores(store: Path) -> list[dict[str, float]]:
    return [json.loads((folder / "scores.json").read_text())["scores"] for folder in results(store, "scores")]


def test_texts_trained_here_come_back_from_both_layouts(tmp_path: Path) -> None:
    """The tokenizer goes along: it was trained on the captions too."""
    store, out = tmp_path / "store", tmp_path / "out"
    words = replacing(
        TINY, ["data.fields=[label,caption]", "cond=text_small", "cond.conditioner.heads=8", f"store={store}"]
    )
    command(train, "train", *words)
    for to in ("compvis", "diffusers"):
        command(export, "export", *words, "until=denoiser", "part=ldm", f"to={to}", f"out={out / to}")
    again = [f"cond.conditioner.tokenizer={out / 'compvis' / 'tokenizer'}", f"ldm.weights={out / 'compvis'}"]
    command(train, "train", *words, *again)
    other = [f"cond.conditioner.tokenizer={out / 'diffusers' / 'tokenizer'}", f"ldm.weights={out / 'diffusers'}"]
    command(train, "train", *words, *other, "eval.weights=raw", "until=samples")
    own, *imported = images(store)
    assert own.std() > 5 and len(imported) == 2 and all((own == found).all() for found in imported)
    first, second = scores(store)
    assert first == second
    with pytest.raises(
        UserError, match=r"tokenizer=null trains a tokenizer on these captions.*tokenizer/ beside an export"
    ):
        command(train, "train", *words, f"ldm.weights={out / 'compvis'}")
    with pytest.raises(UserError, match=r"cond.conditioner.mask=true hides padding"):
        command(train, "train", *words, *again, "cond.conditioner.mask=true")
    with pytest.raises(
        UserError, match=r"cond.conditioner.vocab_size=512 \(cond=text cond.conditioner.length=32, or cond=layout"
    ):
        command(train, "train", *words, *again, "cond.conditioner.length=16")


CLASS_VECTORS = {
    "unet": (["ldm=unet_tiny"], ["cond.conditioner.dim=128", "ldm.network.vector_mlp=false"]),
    "dit": (["ldm=dit_tiny", "ldm.network.blocks=2", "ldm.network.heads=2", "ldm.network.frequency_shift=1"], []),
}


@pytest.mark.parametrize("name", CLASS_VECTORS)
def test_class_vectors_trained_here_come_back_from_diffusers(name: str, tmp_path: Path) -> None:
    store, out = tmp_path / "store", tmp_path / "out"
    own, changed = CLASS_VECTORS[name]
    words = replacing(TINY, ["cond=class_vector", *own, "eval=none", "until=samples", f"store={store}"])
    words = [word for word in words if not word.startswith(("eval.extractor_fit", "eval.reference", "eval.metrics"))]
    command(train, "train", *words)
    command(export, "export", *replacing(words, ["until=denoiser"]), "part=ldm", "to=diffusers", f"out={out}")
    assert "class_labels are numbers of classes; row 10 means no class" in (out / "README.md").read_text()
    again = [*words, f"ldm.weights={out}", "eval.weights=raw"]
    with pytest.raises(
        UserError, match=r"cond.conditioner.dim=128 ldm.network.vector_mlp=false|It is a DiT: .* ldm.network.blocks=2 "
    ):
        prepare(load(replacing(again, ["cond.conditioner.dim=48"])))
    notes = prepare(load(replacing(again, changed))).notes
    assert any("frequency_shift=1, its authors trained with 0; this run computes with 1" in note for note in notes) == (
        name == "dit"
    )
    command(train, "train", *replacing(again, changed))
    one, two = images(store)
    assert one.std() > 5 and np.abs(one.astype(int) - two).max() <= (
        1 if changed else 0
    )  # an MLP was folded into a table


OFFICIAL: dict[str, tuple[UNetKind, Shapes, list[str]]] = {
    "text": (
        UNetKind(3, (1, 2), (2,), 1, context_dim=32), bert_embedder(32, 1, 400, 20),
        ["cond=text", "cond.conditioner.vocab_size=400", "cond.conditioner.length=20", "data.fields=[label,caption]"],
    ),
    "layout": (
        UNetKind(3, (1, 2), (2,), 1, context_dim=32), bert_embedder(32, 1, 200, 14),
        ["cond=layout", "cond.conditioner.vocab_size=200", "cond.conditioner.objects=4", "data.fields=[label,boxes]"],
    ),
    "semantic": (UNetKind(3, (1, 2), (2,), 1, concat=3), spatial_rescaler(11, 3), ["cond=semantic", "data.fields=[label,segmentation]"]),
}  # fmt: skip


@pytest.mark.parametrize("name", OFFICIAL)
def test_an_official_file_is_sampled_and_written_again(name: str, tmp_path: Path) -> None:
    """A file that nothing of ours made; what comes back loads strictly and is the same, bit for bit."""
    kind, condition, own = OFFICIAL[name]
    shapes = whole_model(unet(kind, 32), {}, condition, False)
    state = random_state(shapes, 1) | schedule(0.0015, 0.0195)
    state |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(9, dtype=torch.int)}
    torch.save({"state_dict": state, "global_step": 9}, tmp_path / "model.ckpt")
    words = [
        *TINY[:5],
        "sampler.steps=2",
        "sampler.guidance=2",
        "runtime.threads=1",
        *own,
        f"ldm.weights={tmp_path / 'model.ckpt'}",
    ]
    words += [f"store={tmp_path / 'store'}", "eval=none", "ae.latent_scale.mode=none"]
    words += ["cond.conditioner.heads=8"] * (name != "semantic")
    words += [f"cond.conditioner.tokenizer={bert_tokenizer(tmp_path / 'tokenizer')}"] * (name == "text")
    sample(only_samples(load([*words, "n=3", f"out={tmp_path / 'out'}"])), "python src/sample.py …")
    (drawn,) = images(tmp_path / "store")
    assert drawn.shape == (3, 16, 16, 3) and drawn.std() > 5 and (tmp_path / "out" / "grid.png").exists()
    command(export, "export", *words, "until=denoiser", "part=ldm", "to=compvis", f"out={tmp_path / 'back'}")
    back = torch.load(tmp_path / "back" / "model.ckpt", weights_only=True)["state_dict"]
    module_of(shapes).load_state_dict(back, strict=True)
    assert set(differing(state, back)) <= set(SCHEDULE)  # made again from the objective's schedule
    if name == "layout":  # the same transformer in diffusers' layout
        command(export, "export", *words, "until=denoiser", "part=ldm", "to=diffusers", f"out={tmp_path / 'parts'}")
        assert "LDMBertModel) makes of a layout's token numbers" in (tmp_path / "parts" / "README.md").read_text()
        one, two = denoisers.read(tmp_path), denoisers.read(tmp_path / "parts")
        assert list(differing(one.copies.ema or {}, two.copies.raw)) == list(differing(one.unused, two.unused)) == []
