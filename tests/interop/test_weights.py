"""Files: recognised by their names, read without executing anything, bit-identical there and back."""

import io
import json
import os
import pickle
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ldmlab import build
from ldmlab.autoencoders.autoencoder import Autoencoder
from ldmlab.config.compose import group_options, load
from ldmlab.errors import WeightsError
from ldmlab.interop import compvis, diffusers, weights
from ldmlab.pipeline import weights_first_stage

OPTIONS = [name for name in group_options("ae") if name != "identity" and "pca" not in name and "quick" not in name]


def network(option: str = "kl_f4_small", *words: str) -> Autoencoder:
    """Narrow, with every tensor random."""
    ae = build.autoencoder(load([f"ae={option}", "ae.network.width=8", "ae.network.blocks=1", *words]).cfg)
    with torch.no_grad():
        for p in ae.parameters():
            p.normal_()
    return ae


def official(option: str = "kl_f4_small", *words: str) -> dict[str, Tensor]:
    return compvis.from_ours(network(option, *words).state_dict())


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


# ---- round trips ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", OPTIONS)
def test_round_trips_of_every_option_are_bit_identical(option: str, tmp_path: Path) -> None:
    """Official file with loss.* and an averaged copy → ours → official; the same through diffusers' names."""
    first = official(option)
    extra = {f"model_ema.{k.replace('.', '')}": v + 1 for k, v in first.items()}
    extra |= {
        "loss.logvar": torch.zeros(()),
        "loss.discriminator.main.0.weight": torch.ones(2),
        "model_ema.decay": torch.ones(()),
    }
    torch.save({"state_dict": first | extra, "global_step": 3}, tmp_path / "model.ckpt")
    found = weights.read(tmp_path / "model.ckpt")
    assert found.layout == "CompVis" and found.groups == [32] and found.scale is None
    assert equal(compvis.from_ours(found.tensors), first)  # the raw weights, not the averaged ones
    assert weights.misfit(found.tensors, weights_first_stage.tensors_of(network(option))) is None
    if all(k == "quantize.embedding.weight" or not k.startswith("quantize.") for k in first):
        theirs = diffusers.from_official(first)
        assert equal(diffusers.to_official(theirs), first)
        save_file({k: v.contiguous() for k, v in theirs.items()}, tmp_path / "vae.safetensors")
        assert equal(compvis.from_ours(weights.read(tmp_path / "vae.safetensors").tensors), first)


@pytest.mark.parametrize("option", ["kl_f4_small", "vq_f8"])
def test_our_export_comes_back_bit_identical_with_its_scale(option: str, tmp_path: Path) -> None:
    ae = network(option)
    ae.set_scale(torch.rand(ae.c, 1, 1) + 0.5, torch.randn(ae.c, 1, 1))
    files = weights.as_compvis(ae.state_dict(), weights_first_stage.groups_of(ae))
    assert files == weights.as_compvis(ae.state_dict(), weights_first_stage.groups_of(ae))  # the same bytes each time
    weights.write(tmp_path, files)
    found = weights.read(tmp_path)
    assert found.groups == weights_first_stage.groups_of(ae)
    assert found.scale is not None and found.shift is not None
    assert equal({**found.tensors, "scale": found.scale, "shift": found.shift}, ae.state_dict())
    plain = torch.load(tmp_path / "model.ckpt", weights_only=True)  # as the official init_from_ckpt reads it
    assert equal(plain["state_dict"], compvis.from_ours(ae.state_dict()))


def test_our_own_file_and_a_store_folder(tmp_path: Path) -> None:
    ae = network()
    ae.set_scale(2.0)
    save_file(ae.state_dict(), tmp_path / "autoencoder.safetensors")
    for path in (tmp_path, tmp_path / "autoencoder.safetensors"):
        found = weights.read(path)
        assert (
            found.layout == "ldmlab"
            and found.groups is None
            and equal(found.tensors, weights_first_stage.tensors_of(ae))
        )
        assert found.scale is not None and found.scale.flatten().tolist() == [2.0] * ae.c


def test_first_stage_inside_a_latent_diffusion_checkpoint(tmp_path: Path) -> None:
    first = official()
    whole = {f"first_stage_model.{k}": v for k, v in first.items()} | {
        "model.diffusion_model.time_embed.0.weight": torch.ones(2), "betas": torch.ones(3),
        "scale_factor": torch.tensor(0.18215), "first_stage_model.loss.logvar": torch.zeros(()),
    }  # fmt: skip
    torch.save({"state_dict": whole}, tmp_path / "sd.ckpt")
    found = weights.read(tmp_path / "sd.ckpt")
    assert equal(compvis.from_ours(found.tensors), first)
    assert found.scale is not None and found.scale.item() == pytest.approx(0.18215)


def test_deprecated_attention_names_of_diffusers(tmp_path: Path) -> None:
    """query, key, value, proj_attn: folders of its early versions, such as the first Stable Diffusion's."""
    first = official("kl_f16")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    theirs = {}
    for name, tensor in diffusers.from_official(first).items():
        for new, before in old.items():
            name = name.replace(f".{new}.", f".{before}.")
        theirs[name] = tensor.contiguous()
    assert any(".proj_attn." in name for name in theirs) and not any("to_" in name for name in theirs)
    torch.save(theirs, tmp_path / "diffusion_pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL", "scaling_factor": 0.18215}))
    found = weights.read(tmp_path)
    assert found.layout == "diffusers" and equal(compvis.from_ours(found.tensors), first)
    assert found.scale is not None and found.scale.item() == pytest.approx(0.18215)


@pytest.mark.parametrize("c,scale,shift", [(3, [0.5] * 3, [0.25] * 3), (3, [0.5, 1.5, 2.5], [0.1, -0.2, 0.3])])
def test_scale_goes_through_diffusers_config(c: int, scale: list[float], shift: list[float]) -> None:
    """One number: scaling_factor and shift_factor. One per channel: latents_mean and latents_std."""
    layout = compvis.Layout(c, [1, 2], 128, 2, [], True, 2 * c, None)
    config = diffusers.make_config(layout, [32], 64, torch.tensor(scale), torch.tensor(shift))
    facts = diffusers.read_config(json.loads(json.dumps(config)))
    assert facts.scale is not None and facts.shift is not None
    assert (facts.scale.expand(c) - torch.tensor(scale)).abs().max() < 1e-6
    assert (facts.shift.expand(c) - torch.tensor(shift)).abs().max() < 1e-6


# ---- pickles -------------------------------------------------------------------------------------------------------------


class ModelCheckpoint:
    """Stands for Lightning's; the class is not importable where the file is read."""


class AttributeDict(dict):
    """A subclass of dict, as Lightning's hyper-parameters."""


def test_lightning_s_own_objects_are_passed_over(tmp_path: Path) -> None:
    first, callback = official(), ModelCheckpoint()
    callback.best, callback.path = {"score": [1.0]}, Path("/nowhere")  # type: ignore[attr-defined]
    content: dict[str, Any] = {
        "epoch": 1, "global_step": 5, "pytorch-lightning_version": "1.4.2", "state_dict": OrderedDict(first),
        "callbacks": {ModelCheckpoint: {"best_model_score": torch.ones(()), "best_model_path": "x"}},
        "optimizer_states": [{"state": {0: {"step": 1, "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-3}]}],
        "hyper_parameters": AttributeDict(a=1, b=AttributeDict(c=2)), "loops": defaultdict(dict, {"x": {"y": callback}}),
    }  # fmt: skip
    torch.save(content, tmp_path / "last.ckpt")
    before = torch.serialization.get_safe_globals()
    assert "ModelCheckpoint" in str(torch.serialization.get_unsafe_globals_in_checkpoint(tmp_path / "last.ckpt"))
    assert equal(compvis.from_ours(weights.read(tmp_path / "last.ckpt").tensors), first)
    assert set(torch.serialization.get_safe_globals()) == set(before)  # trusted for this file alone; a set has no order


class Evil:
    def __init__(self, function: Any, *words: str):
        self.function, self.words = function, words

    def __reduce__(self) -> Any:
        return self.function, self.words


@pytest.mark.parametrize(
    "function,code", [(os.system, "touch {}"), (eval, "open({!r}, 'w')"), (exec, "open({!r}, 'w')")]
)
@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
def test_nothing_in_a_file_is_executed(function: Any, code: str, how: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    content = {"state_dict": official(), "callbacks": Evil(function, code.format(str(mark)))}
    file = tmp_path / "evil.ckpt"
    if how == "pickle":
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=how == "zip")
    try:
        found = weights.read(file)
        assert equal(compvis.from_ours(found.tensors), content["state_dict"])  # the call became an empty dict
    except WeightsError as error:
        assert "without executing code" in str(error) and "save_file" in str(error) and "\n" not in str(error)
    assert not mark.exists()


# ---- refusals ------------------------------------------------------------------------------------------------------------


def test_what_cannot_be_read_is_said_in_one_line(tmp_path: Path) -> None:
    save_file({"a.weight": torch.ones(2), "b.weight": torch.ones(2)}, tmp_path / "other.safetensors")
    (tmp_path / "text.ckpt").write_text("hello")
    (tmp_path / "damaged.safetensors").write_bytes((tmp_path / "other.safetensors").read_bytes()[:-4])
    buffer = io.BytesIO()
    torch.save({"state_dict": official()}, buffer)
    (tmp_path / "half.ckpt").write_bytes(buffer.getvalue()[:5000])
    (tmp_path / "empty").mkdir()
    (tmp_path / "pipe" / "vae").mkdir(parents=True)
    (tmp_path / "pipe" / "vae" / "config.json").write_text("{}")
    save_file(official() | {"extra.weight": torch.ones(1)}, tmp_path / "extra.safetensors")
    (tmp_path / "beside").mkdir()
    save_file(
        {k: v.contiguous() for k, v in diffusers.from_official(official()).items()},
        tmp_path / "beside" / "vae.safetensors",
    )
    (tmp_path / "beside" / "config.json").write_text("{")
    for name, words in {
        "beside/vae.safetensors": "config.json beside it is not JSON",
        "missing.ckpt": "no such file",
        "other.safetensors": "holds no first stage in a layout that is known",
        "text.ckpt": "neither safetensors nor a whole torch.save file",
        "damaged.safetensors": "is damaged",
        "half.ckpt": "neither safetensors nor a whole torch.save file",
        "empty": "holds none of autoencoder.safetensors",
        "pipe": "/vae",
        "extra.safetensors": "extra.weight: no first stage has this name",
    }.items():
        with pytest.raises(WeightsError, match=words) as caught:
            weights.read(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "config,words",
    [
        ({"_class_name": "AutoencoderTiny"}, "is of a AutoencoderTiny"),
        ({"_class_name": "VQModel", "norm_type": "spatial"}, "norm_type=spatial"),
        ({"act_fn": "relu"}, "act_fn=relu"),
        ({"scaling_factor": "a"}, "another type than diffusers writes"),
    ],
)
def test_other_networks_of_diffusers_are_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(WeightsError, match=words):
        diffusers.read_config(config)


@pytest.mark.parametrize(
    "words,message",
    [
        (["ae=kl_f8", "ae.network.width=32"], "8 and 16 and 32 groups"),
        (["ae=kl_f4", "ae.network.multipliers=[2,4]"], "first multiplier is 1"),
        (["ae=kl_f4", "ae/regulariser=none"], "is neither"),
    ],
)
def test_what_diffusers_cannot_express_is_refused(words: list[str], message: str) -> None:
    with build.shapes_only():
        ae = build.autoencoder(load([*words, "ae.network.blocks=1"]).cfg)
    tensors = {**ae.state_dict(), "scale": torch.ones(ae.c, 1, 1), "shift": torch.zeros(ae.c, 1, 1)}
    with pytest.raises(WeightsError, match=message):
        weights.as_diffusers(tensors, weights_first_stage.groups_of(ae), 256)


def test_vq_model_knows_no_scale_per_channel() -> None:
    layout = compvis.Layout(3, [1, 2], 128, 2, [], True, 3, 256)
    with pytest.raises(WeightsError, match="one scaling_factor and no shift"):
        diffusers.make_config(layout, [32], 64, torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3))


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    weights.write(tmp_path, {"a": b"1", "b": b"2"})
    assert weights.write(tmp_path, {"a": b"1", "b": b"2"}) == [tmp_path / "a", tmp_path / "b"]
    (tmp_path / "a").unlink()
    with pytest.raises(WeightsError, match=r"b exists and is something else"):
        weights.write(tmp_path, {"a": b"1", "b": b"3"})
    assert not (tmp_path / "a").exists() and (tmp_path / "b").read_bytes() == b"2"


def test_a_file_that_did_not_change_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, calls = tmp_path / "a.safetensors", []
    file.write_bytes(b"1")
    monkeypatch.setattr(weights, "sha256_file", lambda path: calls.append(path) or str(len(calls)))
    assert weights.sha256(file) == weights.sha256(file) == "1"
    file.write_bytes(b"22")
    assert weights.sha256(file) == "2"
