"""`ae.weights` in a composition: fits are checked before anything is made, ids are of the file, nothing is trained."""

import json
import re
from pathlib import Path

import pytest
import torch
from option_words import replacing
from safetensors.torch import save_file

from ldmlab import build
from ldmlab.config.compose import load
from ldmlab.errors import UserError
from ldmlab.interop import compvis, weights
from ldmlab.pipeline import weights_first_stage
from ldmlab.pipeline.plan import Plan
from ldmlab.pipeline.run import prepare

BASE = ["data.train_images=64", "data.val_images=16", "data.cached=false", "data.resolution=64"]


def write(folder: Path, *words: str, official: bool = True) -> Path:
    """Random weights of a composition: a file of the official layout, or our export."""
    ae = build.autoencoder(load(list(words)).cfg)
    ae.set_scale(0.5)
    folder.mkdir(exist_ok=True)
    if official:
        torch.save({"state_dict": compvis.from_ours(ae.state_dict())}, folder / "model.ckpt")
    else:
        weights.write(folder, weights.as_compvis(ae.state_dict(), weights_first_stage.groups_of(ae)))
    return folder / "model.ckpt"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("small"), "ae=kl_f4_small", official=False)


def plan_of(root: Path, *words: str) -> Plan:
    return prepare(
        load(list({w.partition("=")[0]: w for w in [*BASE, f"store={root}", *words]}.values()))
    )  # a later word wins


def refused(*words: str) -> str:
    with pytest.raises(UserError) as caught:
        composed = load([*BASE, *words])
        with build.shapes_only():
            ae = build.autoencoder(composed.cfg)
        weights_first_stage.check(composed.cfg, composed.choices, ae)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_id_is_of_the_file_and_of_what_matters(small: Path, tmp_path: Path) -> None:
    words = [f"ae.weights={small}", "ae.latent_scale.mode=stored"]
    first = plan_of(tmp_path, *words)
    copy = tmp_path / "elsewhere.ckpt"
    copy.write_bytes(small.read_bytes())
    same = [
        [f"ae.weights={copy}"], [f"ae.weights={small.parent}"], ["seed=1"], ["data.seed=1"], ["ae.fit.lr=1e-5"], ["ae/loss=kl_lpips_gan"],
        ["ae.latent_scale.images=7"], ["ae.network.checkpointing=true"],
    ]  # fmt: skip
    for change in same:
        assert (
            plan_of(tmp_path, *replacing(words, change)).address("autoencoder").id == first.address("autoencoder").id
        ), change
    other = write(tmp_path / "other", "ae=kl_f4_small", "seed=5", official=False)
    for change in ([f"ae.weights={other}"], ["ae.latent_scale.mode=none"], ["ae.latent_scale.mode=global"],
                   ["ae.latent_scale.mode=given", "ae.latent_scale.scale=0.6"]):  # fmt: skip
        assert (
            plan_of(tmp_path, *replacing(words, change)).address("autoencoder").id != first.address("autoencoder").id
        ), change
    assert plan_of(tmp_path).address("autoencoder").id != first.address("autoencoder").id
    assert first.has("latents")  # a cache, as for a trained stage


def test_measured_scale_depends_on_the_data(small: Path, tmp_path: Path) -> None:
    plans = [
        plan_of(tmp_path, f"ae.weights={small}", *w).address("autoencoder") for w in ([], ["data.seed=1"], ["seed=1"])
    ]
    assert len({p.id for p in plans}) == 3 and "data" in plans[0].upstream


def test_row_says_imported_and_from_what(small: Path, tmp_path: Path) -> None:
    rows = {stage.name: row for stage, row in plan_of(tmp_path, f"ae.weights={small}").rows}
    assert rows["autoencoder"].what.endswith("imported from model.ckpt") and "682 k" in rows["autoencoder"].what
    assert rows["autoencoder"].images == 2048  # the images its scale is measured on


def test_the_loss_s_files_are_not_asked_for(small: Path) -> None:
    """`???` options of a loss that is not used: SqueezeNet's weights."""
    cfg = load([f"ae.weights={small}", "ae/loss=kl_lpips_gan", "ae/loss/perceptual=squeezenet"]).cfg
    assert cfg.ae.loss is None and cfg.ae.fit is None


@pytest.mark.parametrize(
    "file_of,words,suggestion",
    [
        (["ae=kl_f8"], ["ae=kl_f4"], "It fits ae=kl_f8."),
        (["ae=vq_f8", "ae.regulariser.codes=256"], ["ae=kl_f4"], "It fits ae=vq_f8_n256."),
        (
            ["ae=vq_f4", "ae.network.middle_attention=false"],
            ["ae=vq_f4"],
            "It fits ae=vq_f4_noattn.",
        ),
        (["ae=kl_f4"], ["ae=kl_f4", "debug=tiny"], "It fits ae=kl_f4 ae.network.width=128 ae.network.blocks=2."),
    ],
)
def test_mismatch_says_what_differs_and_what_fits(
    file_of: list[str], words: list[str], suggestion: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Released architectures at true size, on the meta device."""
    with build.shapes_only():
        found = weights_first_stage.tensors_of(build.autoencoder(load(file_of).cfg))
    file = tmp_path / "model.ckpt"
    monkeypatch.setattr(weights, "read", lambda path: weights.Imported(file, "CompVis", found, None, None, [32]))
    text = refused(*words, f"ae.weights={file}")
    assert f"{file} does not fit {words[0]}: " in text and text.endswith(suggestion), text
    assert re.search(
        r"network\.[\w.]+ is [\dx]+ in the file and [\dx]+ here|\d+ belong to another|\d+ of the \d+", text
    ), text


def test_nothing_fits_is_said(tmp_path: Path) -> None:
    torch.save({"encoder.down.0.block.0.conv1.weight": torch.ones(3)}, tmp_path / "model.ckpt")
    assert refused(f"ae.weights={tmp_path}").endswith("It is no network of this family.")


def test_refusals_before_anything_is_made(small: Path, tmp_path: Path) -> None:
    weight = f"ae.weights={small}"
    narrow = write(tmp_path / "narrow", "ae=kl_f4_small")
    nan = build.autoencoder(load([]).cfg)
    next(nan.parameters()).data.fill_(float("nan"))
    weights.write(tmp_path / "nan", weights.as_compvis(nan.state_dict(), weights_first_stage.groups_of(nan)))
    cases = {
        ("ae.weights=/nowhere.ckpt",): "ae.weights=/nowhere.ckpt: no such file or folder",
        (f"ae.weights={narrow}",): "trained with 32 groups in its normalisations, ours has 4 and 8 and 16",
        (f"ae.weights={tmp_path / 'nan'}",): "not finite",
        (weight, "ae=identity"): "ae=identity has no weights",
        (weight, "ae.latent_scale.mode=first_batch_std"): "Use mode=global with ae.latent_scale.images=",
        (f"ae.weights={narrow.parent}", "ae.latent_scale.mode=stored"): "groups",
        ("ae.latent_scale.mode=stored",): "takes the scale that comes with ae.weights",
        ("ae.latent_scale.mode=given", "ae.latent_scale.scale=inf"): "ae.latent_scale.scale must be finite",
        ("ae.latent_scale.mode=given",): "ae.latent_scale.mode=given needs ae.latent_scale.scale=",
        ("ae.latent_scale.scale=2",): "is read with ae.latent_scale.mode=given alone; the mode is global",
        (
            "ae.latent_scale.mode=given",
            "ae.latent_scale.scale=[1,2]",
        ): "a list of 4, one per latent channel (ae.network.c); it has 2",
        ("ae.latent_scale.mode=given", "ae.latent_scale.scale=a"): "must be a number",
        ("ae.latent_scale.mode=given", "ae.latent_scale.scale=-1"): "must be greater than 0",
    }
    for words, message in cases.items():
        assert message in refused(*words), words


def test_stored_scale_that_is_not_there(tmp_path: Path) -> None:
    file = write(tmp_path, "ae=kl_f4", "ae.network.blocks=1")
    text = refused("ae=kl_f4", "ae.network.blocks=1", f"ae.weights={file}", "ae.latent_scale.mode=stored")
    assert "model.ckpt holds no scale" in text and "0.18215" in text


@pytest.mark.parametrize(
    "words,scale,shift",
    [
        (["ae.latent_scale.mode=stored"], [0.5], [0.0]),
        (["ae.latent_scale.mode=given", "ae.latent_scale.scale=0.18215"], [0.18215], [0.0]),
        (
            ["ae.latent_scale.mode=given", "ae.latent_scale.scale=[1,2,3,4]", "ae.latent_scale.shift=0.5"],
            [1, 2, 3, 4],
            [0.5],
        ),
    ],
)
def test_scale_that_is_told(small: Path, words: list[str], scale: list[float], shift: list[float]) -> None:
    cfg = load([*BASE, f"ae.weights={small}", *words]).cfg
    ae = build.autoencoder(cfg)
    assert weights_first_stage.install(cfg, ae)["sha256"] == weights.sha256(small)
    fixed = weights_first_stage.fixed_scale(cfg)
    assert fixed is not None
    ae.set_scale(*fixed)
    assert torch.equal(ae.scale.flatten(), torch.tensor(scale).float().expand(4))
    assert torch.equal(ae.shift.flatten(), torch.tensor(shift).expand(4))
    json.dumps(weights_first_stage.options(cfg)[0]["latent_scale"])


def test_half_precision_files_become_float32(small: Path, tmp_path: Path) -> None:
    """The public fp16 copies of first stages: the same numbers, in the network's own type."""
    half = {k: v.half() for k, v in weights.read(small).tensors.items()}
    save_file(half, tmp_path / "autoencoder.safetensors")
    cfg = load([*BASE, f"ae.weights={tmp_path}"]).cfg
    ae = build.autoencoder(cfg)
    weights_first_stage.check(cfg, {"ae": "kl_f4_small"}, ae)
    weights_first_stage.install(cfg, ae)
    for name, tensor in weights_first_stage.tensors_of(ae).items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, half[name].float())


def test_trained_stages_keep_their_ids(tmp_path: Path) -> None:
    """Options that came with ae.weights are in no id of a stage that is trained here, unless they are used."""
    own = plan_of(tmp_path).address("autoencoder").options["ae"]
    assert "weights" not in own and own["latent_scale"] == {"mode": "global", "images": 2048}
    given = (
        plan_of(tmp_path, "ae.latent_scale.mode=given", "ae.latent_scale.scale=2").address("autoencoder").options["ae"]
    )
    assert given["latent_scale"]["scale"] == 2
