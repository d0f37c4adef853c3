"""`ldm.weights` in a composition: fits are checked before anything is made, ids are of the tensors, nothing is trained."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from option_words import replacing
from safetensors.torch import save_file
from torch import Tensor

from ldmlab import build
from ldmlab.config.compose import load, with_values
from ldmlab.errors import UserError
from ldmlab.interop import denoisers, official_unet
from ldmlab.interop.official_unet import Copies
from ldmlab.pipeline import weights_denoiser
from ldmlab.pipeline.export import export_denoiser
from ldmlab.pipeline.plan import Plan
from ldmlab.pipeline.run import prepare

BASE = [
    "debug=tiny", "ae=identity", "data.train_images=32", "data.val_images=8", "data.cached=false", "data.resolution=16",
    "eval.label_mode=uniform",
]  # fmt: skip
Edit = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def plan_of(root: Path, *words: str) -> Plan:
    return prepare(load([*replacing(BASE, words), f"store={root}"]))


def tensors(*words: str, seed: int = 0) -> tuple[dict[str, Tensor], Any]:
    """The denoiser of a composition with random weights, and its configuration."""
    cfg = load(replacing([*BASE, f"seed={seed}"], words)).cfg
    ae, data = build.autoencoder(cfg), build.dataset(cfg, "train", None)
    return build.denoiser(cfg, ae, data).state_dict(), cfg


def write(
    file: Path, *words: str, seed: int = 0, averaged: bool = True, edit: Edit = lambda official: official
) -> Path:
    """A file of the official layout, without anything of ours."""
    raw, cfg = tensors(*words, seed=seed)
    official = official_unet.from_ours(Copies(raw, tensors(*words, seed=seed + 1)[0] if averaged else None))
    official["alphas_cumprod"] = build.objective(cfg).schedule.alpha_bar_T.float()
    torch.save({"state_dict": edit(official)}, file)
    return file


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("official") / "model.ckpt")


def refused(root: Path, *words: str) -> str:
    with pytest.raises(UserError) as caught:
        plan_of(root, *words)
    assert "\n" not in str(caught.value)
    assert not list(root.glob("*/*-*/done.json"))
    return str(caught.value)


def test_id_is_of_the_tensors_and_of_what_matters(model: Path, tmp_path: Path) -> None:
    words = [f"ldm.weights={model}"]
    first = plan_of(tmp_path, *words)
    copy = tmp_path / "elsewhere.ckpt"
    whole = torch.load(model, weights_only=True)
    torch.save({"state_dict": whole["state_dict"], "optimizer_states": [torch.ones(3)], "epoch": 4}, copy)
    same = [
        [f"ldm.weights={copy}"], ["ldm.fit.lr=1e-5", "ldm.network.checkpointing=true"], ["cond.drop=0.2", "objective.loss=l1"],
        ["eval.weights=raw", "sampler.steps=5", "cond.label=1"],
    ]  # fmt: skip
    for change in same:
        assert plan_of(tmp_path, *replacing(words, change)).address("denoiser").id == first.address("denoiser").id, (
            change
        )
    for change in (["seed=1"], ["data.seed=1"]):  # they are part of the first stage below it, which is trained
        assert (
            plan_of(tmp_path, *replacing(words, change)).address("denoiser").options
            == first.address("denoiser").options
        ), change
    other = write(tmp_path / "other.ckpt", seed=5)
    for change in ([f"ldm.weights={other}"], ["ldm.network.heads=2"], ["objective.target=v"]):
        assert plan_of(tmp_path, *replacing(words, change)).address("denoiser").id != first.address("denoiser").id, (
            change
        )
    assert plan_of(tmp_path).address("denoiser").id != first.address("denoiser").id
    assert first.address("denoiser").upstream == {"autoencoder": first.address("autoencoder").id} and not first.has(
        "latents"
    )
    ids = {plan_of(tmp_path, *words, f"eval.weights={w}").address("samples").id for w in ("ema", "raw")}
    assert len(ids) == 2


def test_trained_denoisers_keep_their_ids(tmp_path: Path) -> None:
    """The option that came later is in no id of a stage that is trained here."""
    own = plan_of(tmp_path).address("denoiser").options["ldm"]
    assert set(own) == {"network", "fit", "power_ema", "seed"}


def test_row_and_notes_say_what_it_is(model: Path, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, f"ldm.weights={model}")
    rows = {stage.name: row for stage, row in plan.rows}
    assert rows["denoiser"].what.endswith("imported from model.ckpt") and rows["denoiser"].images == 0
    assert "after" not in rows["samples"].what and plan.resolved.snapshots == [0]
    assert "computes with ldm.network.heads=1" in plan.notes[0] and len(plan.notes) == 1


def test_a_scale_that_is_measured_anew_is_noted(tmp_path: Path) -> None:
    """The file of a whole model brings the scale that its denoiser knows."""
    words = ["ae=kl_f4_small", "ae.network.width=16", "data.resolution=32"]
    cfg = load(replacing(BASE, words)).cfg
    ae = build.autoencoder(cfg)
    ae.set_scale(0.25)
    facts = denoisers.ModelFacts({}, build.objective(cfg).schedule.alpha_bar_T, "eps", 8)
    files = denoisers.as_compvis(Copies(tensors(*words)[0], None), facts, ae.state_dict(), imported_groups(ae))
    file = tmp_path / "model.ckpt"
    file.write_bytes(files["model.ckpt"])
    given = [*words, f"ae.weights={file}", f"ldm.weights={file}", "eval.weights=raw"]
    assert any("measures the latent's scale" in note and "(0.25)" in note for note in plan_of(tmp_path, *given).notes)
    stored = plan_of(tmp_path, *given, "ae.latent_scale.mode=stored")
    assert not any("latent's scale" in note for note in stored.notes)
    assert stored.address("autoencoder").options["latent_scale"]["scale"] == [0.25] * 4


def imported_groups(ae: Any) -> list[int]:
    from ldmlab.pipeline import weights_first_stage

    return weights_first_stage.groups_of(ae)


def test_both_copies_are_installed(model: Path, tmp_path: Path) -> None:
    """The averaged UNet with the conditioner as it is: what the official code samples with."""
    raw, cfg = tensors()
    cfg = with_values(cfg, {"ldm.weights": str(model)})
    ae, data = build.autoencoder(cfg), build.dataset(cfg, "train", None)
    weights_denoiser.install(cfg, build.denoiser(cfg, ae, data), tmp_path)
    stored = {name: denoisers.read(tmp_path / f"{name}.safetensors").copies.raw for name in ("weights", "ema")}
    twin = tensors(seed=1)[0]
    for key, value in raw.items():
        assert torch.equal(stored["weights"][key], value)
        assert torch.equal(stored["ema"][key], value if key.startswith("conditioner.") else twin[key])


def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    file = write(tmp_path / "half.ckpt", averaged=False, edit=lambda o: {k: v.half() for k, v in o.items()})
    cfg = load([*BASE, f"ldm.weights={file}", "eval.weights=raw"]).cfg
    ae, data = build.autoencoder(cfg), build.dataset(cfg, "train", None)
    net = build.denoiser(cfg, ae, data)
    weights_denoiser.install(cfg, net, tmp_path)
    half = denoisers.read(file).copies.raw
    assert all(v.dtype == torch.float32 and torch.equal(v, half[k].float()) for k, v in net.state_dict().items())


def test_a_table_without_the_null_class(tmp_path: Path) -> None:
    """1000 rows for 1000 classes (the released models but the guided one): cond.drop=0, and no guidance."""
    key = "cond_stage_model.embedding.weight"
    file = write(tmp_path / "model.ckpt", edit=lambda o: o | {key: o[key][:-1].clone()})
    assert "trained without the null class" in refused(tmp_path, f"ldm.weights={file}")
    words = [f"ldm.weights={file}", "cond.drop=0"]
    assert "never trains it" in refused(tmp_path, *words, "sampler.guidance=2")
    plan_of(tmp_path, *words)
    cfg = load(replacing(BASE, words)).cfg
    net = build.denoiser(cfg, build.autoencoder(cfg), build.dataset(cfg, "train", None))
    weights_denoiser.install(cfg, net, tmp_path)
    table = net.state_dict()["conditioner.embedding.weight"]
    assert (
        torch.equal(table[:-1], denoisers.read(file).copies.raw["conditioner.embedding.weight"]) and not table[-1].any()
    )


def test_a_network_of_another_shape_is_named_with_what_fits(model: Path, tmp_path: Path) -> None:
    weight = f"ldm.weights={model}"
    cases = {
        ("ldm.network.multipliers=[1,3]",): "Its network is ldm=unet_tiny ldm.network.multipliers=[1,2];",
        ("ldm.network.width=64",): "ldm=unet_tiny ldm.network.width=32; no tensor says how many heads",
        ("ldm.network.scale_shift_norm=true",): "ldm.network.scale_shift_norm=false",
        ("ldm.network.attention_factors=null", "ldm.network.attention_sizes=[16]"): "=[2] ldm.network.attention_sizes=null",
        ("cond=none",): "cond.conditioner.dim=32 (cond=class_label).",
        ("cond.conditioner.dim=16",): "It reads tokens of 32 features: cond.conditioner.dim=32 ",
        ("ae=kl_f4_small", "data.resolution=32"): "Its latent has 3 channels, ae.network.c=4.",
        ("ldm=dit_s_2",): "Its network is ldm=",
    }  # fmt: skip
    for words, message in cases.items():
        drop = ["cond.drop=0"] if "cond=none" in words else []
        text = refused(tmp_path, weight, *words, *drop)
        assert message in text and f"{model} does not fit ldm=" in text, (words, text)
        assert " in the file and " in text or "tensors are missing" in text, text


@pytest.mark.slow
def test_an_option_of_conf_is_named(tmp_path: Path) -> None:
    """The paper's networks at true size, on the meta device."""
    composed = load(
        ["ldm=celebahq_f4", "cond=none", "ae=vq_f4", "data.resolution=256", "data.train_images=8", "data.val_images=8"]
    )
    with build.shapes_only():
        data = build.dataset(composed.cfg, "train", None)
        net = build.denoiser(composed.cfg, build.autoencoder(composed.cfg), data).state_dict()
    text = weights_denoiser._fitting(net, load(["ldm=unet_small", "cond=none"]).cfg, {"ldm": "unet_small"})
    assert text.startswith("Its network is ldm=bedrooms_f4;") and "cond=none" in text  # the same network as celebahq_f4


def test_refusals_before_anything_is_made(model: Path, tmp_path: Path) -> None:
    weight = f"ldm.weights={model}"
    single = write(tmp_path / "single.ckpt", averaged=False)
    nan = write(
        tmp_path / "nan.ckpt", edit=lambda o: o | {"model.diffusion_model.out.2.bias": torch.full((3,), float("nan"))}
    )
    cosine = write(tmp_path / "cosine.ckpt", "objective/schedule=cosine")
    odd = write(tmp_path / "odd.ckpt", edit=lambda o: o | {"alphas_cumprod": torch.linspace(0.9, 0.1, 1000)})
    save_file({"encoder.down.0.block.0.conv1.weight": torch.ones(1)}, tmp_path / "first.safetensors")
    cases = {
        ("ldm.weights=/nowhere.ckpt",): "ldm.weights=/nowhere.ckpt: no such file or folder",
        (f"ldm.weights={tmp_path / 'first.safetensors'}",): "give it as ae.weights",
        (f"ldm.weights={single}",): "eval.weights=ema, but",
        (f"ldm.weights={nan}",): "not finite",
        (f"ldm.weights={cosine}",): "It fits objective/schedule=cosine.",
        (f"ldm.weights={odd}",): "No objective/schedule= of conf fits it.",
        (weight, "objective.schedule.T=500"): "it has 1000 steps in the file and 500 here",
        (weight, "eval.at=[0.5,1.0]"): "eval.at=[0.5, 1.0]: ldm.weights is one state",
        (weight, "ldm.power_ema=[0.05]"): "averages made in training",
        (weight, "ldm.budget.parameters=1e6"): "ldm.budget.parameters chooses a width",
        (weight, "fair=network"): "ldm.budget.fair chooses a width",
        (weight, "ldm.network.norm_groups=16"): "32 groups in each normalisation",
        ("ldm.fit=null",): "ldm.fit=null trains nothing",
    }
    for words, message in cases.items():
        assert message in refused(tmp_path, *words), words


def test_heads_and_target_that_a_file_says(tmp_path: Path) -> None:
    """Our own checkpoints say what the official names do not."""
    raw, cfg = tensors()
    ae = build.autoencoder(cfg)
    heads = {"input_blocks.3.1": 2}
    facts = denoisers.ModelFacts(heads, build.objective(cfg).schedule.alpha_bar_T, "v", 16)
    files = denoisers.as_compvis(Copies(raw, None), facts, ae.state_dict(), [])
    (tmp_path / "model.ckpt").write_bytes(files["model.ckpt"])
    words = [f"ldm.weights={tmp_path}", "eval.weights=raw"]
    assert "input_blocks.3.1 has 2 in the file and 1 here" in refused(tmp_path, *words)
    # an attention's name is not there at all: nothing to contradict
    assert "predicts v, and objective.target=eps" in refused(tmp_path, *words, "ldm.network.heads=2")
    assert plan_of(tmp_path, *words, "ldm.network.heads=2", "objective.target=v").notes == []


def test_a_classifier_beside_an_imported_denoiser_is_of_the_data_it_learns_from(model: Path, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, f"ldm.weights={model}", "guidance=classifier")
    assert plan.address("denoiser").upstream.keys() == {"autoencoder"}
    assert plan.address("noisy_classifier").upstream.keys() == {"autoencoder", "data"}


def test_other_groups_are_not_exported(tmp_path: Path) -> None:
    """The layouts of others have 32 at any width; there the weights would compute something else."""
    words = [*BASE, "ldm.network.norm_groups=null", "ldm.network.norm_group_channels=8", f"store={tmp_path}"]
    for to in ("compvis", "diffusers"):
        with pytest.raises(UserError, match=r"normalise in 32 groups.*norm_groups=32"):
            export_denoiser(load(words), to, tmp_path / "out", "")
    assert not (tmp_path / "out").exists()


REFUSED = {
    ("compvis", "ldm=dit_tiny"): "the official latent diffusion has UNets alone. Use to=diffusers",
    ("diffusers", "ldm=dit_tiny"): "takes classes as a vector and no tokens. Networks with cond=class_vector",
    (
        "diffusers",
        "ldm=dit_tiny",
        "cond=class_vector",
    ): "ldm.network.frequency_shift=0: diffusers computes the time's frequencies",
    ("compvis", "cond=class_vector"): "for which the official layout has no place. Use to=diffusers",
    (
        "compvis",
        "ldm.network.level_channels=[32,96]",
        "ldm.network.width=64",
    ): "ldm.network.level_channels: the layouts of others",
    (
        "diffusers",
        "cond=semantic",
        "data.fields=[label,segmentation]",
    ): "to=diffusers has a place for those of ClassLabel, Text, Layout",
    (
        "compvis",
        "cond=text_small",
        "data.fields=[label,caption]",
        "cond.conditioner.mask=true",
    ): "the layouts of others hide no padding",
    ("compvis", "cond=[class_label,text_small]", "data.fields=[label,caption]"): "one at a time",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_a_layout_has_no_place_for_is_not_exported(words: tuple[str, ...], tmp_path: Path) -> None:
    to, *own = words
    with pytest.raises(UserError) as caught:
        export_denoiser(load(replacing(BASE, [*own, f"store={tmp_path}"])), to, tmp_path / "out", "")
    assert REFUSED[words] in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
