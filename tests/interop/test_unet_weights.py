"""Denoisers as others write them: parity with diffusers' equal networks both ways, round trips of the official layout."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ldmlab.conditioning.base import Cond
from ldmlab.conditioning.class_label import ClassLabel
from ldmlab.conditioning.compose import Compose
from ldmlab.diffusion.denoiser import Denoiser
from ldmlab.diffusion.schedules import Cosine, Linear, LinearSqrtBeta
from ldmlab.errors import WeightsError
from ldmlab.interop import denoisers, diffusers_unet, official_unet, schedules
from ldmlab.interop.official_unet import Copies
from ldmlab.networks.dit import DiT
from ldmlab.networks.unet import UNet
from ldmlab.pipeline.weights_denoiser import heads_of

TOLERANCE = 1e-5  # relative to the largest value

NETWORKS: dict[str, dict[str, Any]] = {
    "unconditional": {"multipliers": [1, 2, 3], "blocks": 2, "attention_factors": [2, 4], "head_channels": 16},
    "one head": {"multipliers": [1, 2], "blocks": 1, "attention_factors": [2], "heads": 1},
    "scale shift": {"multipliers": [1, 2], "blocks": 1, "attention_factors": [1, 2], "head_channels": 8, "scale_shift_norm": True},
    "resnet updown": {
        "multipliers": [1, 1, 2], "blocks": 2, "attention_factors": [4], "head_channels": 32, "scale_shift_norm": True,
        "resblock_updown": True,
    },
    "middle alone": {"multipliers": [1, 2], "blocks": 2, "attention_factors": [], "head_channels": 32},
    "one level": {"multipliers": [1], "blocks": 2, "attention_factors": [1], "heads": 4},
    "tokens": {"multipliers": [1, 2, 2], "blocks": 1, "attention_factors": [1, 4], "head_channels": 16, "context_dim": 24},
    "tokens, one head": {"multipliers": [1, 2], "blocks": 2, "attention_factors": [2], "heads": 1, "context_dim": 24},
    "tokens, deep": {
        "multipliers": [1, 2], "blocks": 1, "attention_factors": [1, 2], "heads": 4, "context_dim": 24, "transformer_depth": 2,
        "scale_shift_norm": True,
    },
}  # fmt: skip
PLAIN = [name for name in NETWORKS if "context_dim" not in NETWORKS[name]]


def randomise(module: nn.Module, seed: int) -> None:
    """Every tensor distinct and none zero: fresh output layers are, and would hide whatever stands before them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            noise = torch.randn(p.shape, generator=generator)
            p.copy_(noise / p[0].numel() ** 0.5 if p.ndim > 1 else 0.3 * noise + (p if p.eq(1).all() else 0))


def unet(name: str, seed: int = 0, **changes: Any) -> UNet:
    net = UNet(in_channels=4, out_channels=3, width=32, **{**NETWORKS[name], **changes})
    randomise(net, seed)
    return net.eval().requires_grad_(False)


def denoiser(name: str = "tokens", seed: int = 0) -> Denoiser:
    conditioner: nn.Module = ClassLabel(10, dim=24) if "context_dim" in NETWORKS[name] else Compose([])
    randomise(conditioner, seed + 1)
    return Denoiser(unet(name, seed), conditioner).requires_grad_(False)


def facts_of(net: nn.Module, target: str | None = "eps") -> denoisers.Facts:
    return denoisers.Facts(heads_of(net), LinearSqrtBeta().alpha_bar_T, target, 16)


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def network_tensors(net: nn.Module) -> dict[str, Tensor]:
    return {f"network.{k}": v for k, v in net.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def first_stage(scale: Tensor | None = None) -> dict[str, Tensor]:
    """Stands for an autoencoder's state dict."""
    return {
        "network.encoder.conv_in.weight": torch.randn(2, 3),
        "scale": torch.full((4, 1, 1), 0.5) if scale is None else scale,
        "shift": torch.zeros(4, 1, 1),
    }


# ---- parity --------------------------------------------------------------------------------------------------------------


def load_peer(folder: Path, tokens: bool) -> Any:
    diffusers = pytest.importorskip("diffusers", reason="the oracle of these tests; pip install -e .[dev]")
    cls = diffusers.UNet2DConditionModel if tokens else diffusers.UNet2DModel
    peer, info = cls.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return peer.eval().requires_grad_(False)


def assert_same(net: UNet, peer: Any, tokens: bool) -> None:
    """Rectangular latents, so that a transposed axis would show; two tokens, so that attention is more than a copy."""
    generator = torch.Generator().manual_seed(7)
    z_BCHW, t_B = torch.randn(2, 4, 8, 16, generator=generator), torch.tensor([3, 841])
    tokens_BLD = torch.randn(2, 2, 24, generator=generator) if tokens else None
    mine = net(z_BCHW, t_B, Cond(tokens_BLD=tokens_BLD))
    theirs = peer(z_BCHW, t_B, *(() if tokens_BLD is None else (tokens_BLD,)), return_dict=False)[0]
    assert mine.abs().max() > 0.1 and float((mine - theirs).abs().max() / theirs.abs().max()) <= TOLERANCE


@pytest.mark.parametrize("name", NETWORKS)
def test_diffusers_computes_what_ours_does_from_our_export(name: str, tmp_path: Path) -> None:
    net, tokens = unet(name), "context_dim" in NETWORKS[name]
    write(tmp_path, denoisers.as_diffusers(network_tensors(net), facts_of(net)))
    assert_same(net, load_peer(tmp_path / "unet", tokens), tokens)
    found = denoisers.read(tmp_path)
    assert found.layout == "diffusers" and equal(found.copies.raw, network_tensors(net))
    assert found.heads == heads_of(net) and found.target == "eps" and found.alpha_bar_T is not None


@pytest.mark.parametrize("name", NETWORKS)
def test_ours_computes_what_diffusers_does_from_its_files(name: str, tmp_path: Path) -> None:
    """A network that diffusers builds from its own arguments and fills itself."""
    diffusers = pytest.importorskip("diffusers")
    net, tokens = unet(name), "context_dim" in NETWORKS[name]
    layout = official_unet.layout_of(net.state_dict())
    assert layout is not None
    config = diffusers_unet.make_config(layout, heads_of(net), 16)
    cls = diffusers.UNet2DConditionModel if tokens else diffusers.UNet2DModel
    peer = cls(**{k: v for k, v in config.items() if not k.startswith("_")}).eval().requires_grad_(False)
    randomise(peer, 5)
    peer.save_pretrained(tmp_path / "unet")
    found = denoisers.read(tmp_path / "unet")
    net.load_state_dict({k.removeprefix("network."): v for k, v in found.copies.raw.items()})
    assert found.heads == heads_of(net)
    assert_same(net, peer, tokens)


def test_heads_matter() -> None:
    """The same tensors with other heads compute something else: what the checks of heads are for (docs/paper.md#heads)."""
    z_BCHW, t_B = torch.randn(1, 4, 8, 8), torch.tensor([3])
    one, four = unet("one head"), unet("one head", heads=4)
    assert (one(z_BCHW, t_B, Cond()) - four(z_BCHW, t_B, Cond())).abs().max() > 1e-3


def test_linear_projections_are_the_same_map(tmp_path: Path) -> None:
    """`use_linear_projection`: [C, C] where others have 1×1 convolutions."""
    diffusers = pytest.importorskip("diffusers")
    net = unet("tokens")
    layout = official_unet.layout_of(net.state_dict())
    assert layout is not None
    config = diffusers_unet.make_config(layout, heads_of(net), 16) | {"use_linear_projection": True}
    peer = diffusers.UNet2DConditionModel(**{k: v for k, v in config.items() if not k.startswith("_")}).eval()
    randomise(peer.requires_grad_(False), 5)
    peer.save_pretrained(tmp_path)
    found = denoisers.read(tmp_path).copies.raw
    net.load_state_dict({k.removeprefix("network."): v for k, v in found.items()})
    assert_same(net, peer, tokens=True)


def test_deprecated_attention_names_are_read(tmp_path: Path) -> None:
    """`query`, `key`, `value`, `proj_attn`: the names in the public folders of the paper's unconditional models."""
    net = unet("unconditional")
    files = denoisers.as_diffusers(network_tensors(net), facts_of(net))
    write(tmp_path, files)
    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def renamed(name: str) -> str:
        for new, deprecated in old.items():
            name = name.replace(f".{new}.", f".{deprecated}.")
        return name

    from safetensors.torch import load_file

    save_file({renamed(k): v for k, v in load_file(file).items()}, file)
    assert any(".proj_attn." in k for k in load_file(file))
    assert equal(denoisers.read(tmp_path).copies.raw, network_tensors(net))


def test_qkv_by_heads_round_trip_and_order() -> None:
    """Head by head: with 2 heads of 1 feature, the rows are q0 k0 v0 q1 k1 v1."""
    q, k, v = diffusers_unet.split_qkv(torch.arange(6.0), heads=2)
    assert [x.tolist() for x in (q, k, v)] == [[0, 3], [1, 4], [2, 5]]
    weight = torch.randn(12, 4, 1)
    assert torch.equal(diffusers_unet.join_qkv(diffusers_unet.split_qkv(weight, 2), 2), weight)


# ---- the official layout -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_official_to_ours_to_official_is_bit_identical(name: str, averaged: bool, tmp_path: Path) -> None:
    """The names of docs/paper.md#checkpoints, written out by hand; what the official trainer keeps beside them is passed over."""
    net = unet(name)
    official = {f"model.diffusion_model.{k}": v for k, v in net.state_dict().items()}
    if "context_dim" in NETWORKS[name]:
        official["cond_stage_model.embedding.weight"] = torch.randn(11, 24)
    if averaged:
        twin = unet(name, seed=3)
        official |= {f"model_ema.diffusion_model{k.replace('.', '')}": v for k, v in twin.state_dict().items()}
        assert "model_ema.diffusion_modeltime_embed0weight" in official
    aside = {
        "betas": torch.zeros(1000), "alphas_cumprod": LinearSqrtBeta().alpha_bar_T.float(), "posterior_variance": torch.ones(9),
        "scale_factor": torch.tensor(0.25), "first_stage_model.encoder.conv_in.weight": torch.ones(3), "logvar": torch.zeros(9),
        **({"model_ema.decay": torch.ones(()), "model_ema.num_updates": torch.tensor(3)} if averaged else {}),
    }  # fmt: skip
    torch.save({"state_dict": official | aside, "global_step": 3}, tmp_path / "model.ckpt")
    found = denoisers.read(tmp_path)
    assert found.layout == "CompVis" and found.heads is None and found.target is None
    assert found.scale is not None and found.scale.item() == 0.25
    assert schedules.difference(found.alpha_bar_T, LinearSqrtBeta().alpha_bar_T) is None  # type: ignore[arg-type]
    assert (found.copies.ema is not None) == averaged
    assert equal(
        {k.removeprefix("network."): v for k, v in found.copies.raw.items() if "network" in k}, dict(net.state_dict())
    )
    if averaged:
        mixed = unet(name, seed=3).state_dict()  # an averaged UNet with the conditioner as it is, as the official code
        assert equal(
            {k.removeprefix("network."): v for k, v in found.copies.ema.items() if "network" in k}, dict(mixed)
        )  # type: ignore[union-attr]
    assert equal(official_unet.from_ours(found.copies), official)


def test_our_checkpoint_comes_back_with_what_the_official_names_lack(tmp_path: Path) -> None:
    raw, ema = denoiser("tokens").state_dict(), denoiser("tokens", seed=5).state_dict()
    stage = first_stage(torch.rand(4, 1, 1))
    files = denoisers.as_compvis(Copies(raw, ema), facts_of(unet("tokens"), "v"), stage, [4, 8])
    assert files == denoisers.as_compvis(
        Copies(raw, ema), facts_of(unet("tokens"), "v"), stage, [4, 8]
    )  # the same bytes
    found = denoisers.read(write(tmp_path, files))
    assert equal(found.copies.raw, raw) and found.copies.ema is not None and equal(found.copies.ema, ema)
    assert found.heads == heads_of(unet("tokens")) and found.target == "v"
    state = torch.load(tmp_path / "model.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(state["cond_stage_model.embedding.weight"], raw["conditioner.embedding.weight"])
    assert "scale_factor" not in state and "first_stage_model.encoder.conv_in.weight" in state  # per channel: no place
    uniform = denoisers.as_compvis(Copies(raw, None), facts_of(unet("tokens")), first_stage(), [32])
    state = torch.load(write(tmp_path / "b", uniform) / "model.ckpt", weights_only=True)["state_dict"]
    assert state["scale_factor"].item() == 0.5 and not any(k.startswith("model_ema") for k in state)
    # float64 by hand, as make_beta_schedule computes it
    betas = torch.linspace(0.0015**0.5, 0.0195**0.5, 1000, dtype=torch.float64) ** 2
    assert torch.allclose(state["betas"].double(), betas, rtol=1e-5)
    assert torch.allclose(state["alphas_cumprod"].double(), torch.cumprod(1 - betas, 0), rtol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_structure_is_read_off_names_and_shapes(name: str) -> None:
    options = {
        "transformer_depth": 1,
        "context_dim": None,
        "scale_shift_norm": False,
        "resblock_updown": False,
        **NETWORKS[name],
    }
    layout = official_unet.layout_of(unet(name).state_dict())
    assert layout is not None and layout.in_channels == 4 and layout.out_channels == 3 and layout.width == 32
    for key in ("multipliers", "blocks", "attention_factors", "context_dim", "scale_shift_norm", "resblock_updown"):
        assert getattr(layout, key) == options[key], key
    assert layout.transformer_depth == (options["transformer_depth"] if layout.context_dim else 0)


def test_a_unet_alone_and_our_own_files(tmp_path: Path) -> None:
    net = unet("unconditional")
    save_file(net.state_dict(), tmp_path / "unet.safetensors")
    assert equal(denoisers.read(tmp_path / "unet.safetensors").copies.raw, network_tensors(net))
    model, twin = denoiser(), denoiser(seed=4)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    save_file(twin.state_dict(), tmp_path / "ema.safetensors")
    for path in (tmp_path, tmp_path / "weights.safetensors"):
        copies = denoisers.read(path).copies
        assert equal(copies.raw, model.state_dict()) and copies.ema is not None and equal(copies.ema, twin.state_dict())
    alone = denoisers.read(tmp_path / "ema.safetensors").copies
    assert equal(alone.raw, twin.state_dict()) and alone.ema is None


def test_digest_is_of_the_tensors(tmp_path: Path) -> None:
    raw = denoiser().state_dict()
    official = official_unet.from_ours(Copies(raw, None))
    torch.save({"state_dict": official}, tmp_path / "a.ckpt")
    torch.save({"state_dict": dict(reversed(official.items())), "global_step": 9}, tmp_path / "b.ckpt")
    save_file(raw, tmp_path / "c.safetensors")
    digests = [denoisers.digest(tmp_path / name) for name in ("a.ckpt", "b.ckpt", "c.safetensors")]
    assert len(set(digests)) == 1
    key = next(iter(raw))
    save_file(raw | {key: raw[key] + 1}, tmp_path / "d.safetensors")
    assert denoisers.digest(tmp_path / "d.safetensors") != digests[0]
    save_file({k: v.half() for k, v in raw.items()}, tmp_path / "d.safetensors")  # another file of the same name
    assert len({*digests, denoisers.digest(tmp_path / "d.safetensors")}) == 2


# ---- refusals ------------------------------------------------------------------------------------------------------------


class Evil:
    def __init__(self, words: str):
        self.words = words

    def __reduce__(self) -> Any:
        return os.system, (self.words,)


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    official, mark = official_unet.from_ours(Copies(denoiser().state_dict(), None)), tmp_path / "mark"
    for legacy in (False, True):
        content = {"state_dict": official, "callbacks": Evil(f"touch {mark}")}
        torch.save(content, tmp_path / "evil.ckpt", _use_new_zipfile_serialization=not legacy)
        try:
            assert equal(official_unet.from_ours(denoisers.read(tmp_path / "evil.ckpt").copies), official)
        except WeightsError as error:
            assert "without executing code" in str(error)
        assert not mark.exists()


def refused(path: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        denoisers.read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_read_is_said_in_one_line(tmp_path: Path) -> None:
    official = official_unet.from_ours(Copies(denoiser().state_dict(), denoiser(seed=2).state_dict()))
    ema = next(k for k in official if k.startswith("model_ema."))
    cases: dict[str, tuple[dict[str, Tensor], str]] = {
        "strange": (
            official | {"control.weight": torch.ones(1)},
            "control.weight: no latent diffusion model has this name",
        ),
        "lacking": (
            {k: v for k, v in official.items() if k != ema},
            r"the averaged copy (model_ema.*) lacks 1 tensors",
        ),
        "other": (
            official | {"model_ema.diffusion_modelx": torch.ones(1)},
            "no tensor of model.diffusion_model has this name",
        ),
        "first": (
            {"encoder.down.0.block.0.conv1.weight": torch.ones(1)},
            "It is a first stage: give it as ae.weights.",
        ),
        "ours": ({"network.encoder.conv_in.weight": torch.ones(1)}, "it is a first stage of ours"),
        "dit": ({f"{k}": v for k, v in DiT(4, 4, 8, 1, 2).state_dict().items()}, "DiTs in our own layout alone"),
        "nothing": ({"a.weight": torch.ones(1)}, "holds no denoiser in a layout that is known"),
        "alone": (
            unet("one head").state_dict() | {"extra.weight": torch.ones(1)},
            "extra.weight: no UNet has this name",
        ),
    }
    for name, (tensors, message) in cases.items():
        save_file(dict(tensors), tmp_path / f"{name}.safetensors")
        assert message in refused(tmp_path / f"{name}.safetensors"), name
    (tmp_path / "empty").mkdir()
    assert "the folder holds none of unet/" in refused(tmp_path / "empty")
    assert "ldm.weights=" in refused(tmp_path / "missing.ckpt")
    (tmp_path / "text.ckpt").write_text("hello")
    assert "neither safetensors nor a whole torch.save file" in refused(tmp_path / "text.ckpt")


@pytest.mark.parametrize(
    "name,change,message",
    [
        ("unconditional", {"norm_eps": 1e-6}, "config.json has norm_eps=1e-06; this network has 1e-05"),
        ("unconditional", {"norm_num_groups": 16}, "norm_num_groups=16; this network has 32"),
        ("unconditional", {"act_fn": "gelu"}, "act_fn=gelu; this network has silu or swish"),
        ("unconditional", {"flip_sin_to_cos": False}, "flip_sin_to_cos=False"),
        ("unconditional", {"freq_shift": 1}, "freq_shift=1"),
        ("unconditional", {"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift=spatial"),
        ("unconditional", {"time_embedding_type": "fourier"}, "time_embedding_type=fourier"),
        (
            "unconditional",
            {"attention_head_dim": 7},
            "attention_head_dim=7, which does not divide an attention of 64 channels",
        ),
        ("unconditional", {"attention_head_dim": "a"}, "attention_head_dim=a, which cannot be read"),
        ("unconditional", {"down_block_types": ["AttnSkipDownBlock2D"]}, "blocks of type AttnSkipDownBlock2D"),
        ("unconditional", {"num_class_embeds": 10}, "num_class_embeds=10"),
        ("unconditional", {"newly_invented": 2}, "newly_invented=2, a field that is not known here"),
        ("unconditional", {"_class_name": "UNet1DModel"}, "is of a UNet1DModel"),
        ("unconditional", {"_class_name": None}, "needs diffusers' config.json beside it"),
        ("scale shift", {"attn_norm_num_groups": None}, "its middle attention has no normalisation"),
        ("tokens", {"addition_embed_type": "text"}, "addition_embed_type=text"),
        ("tokens", {"only_cross_attention": True}, "only_cross_attention=True"),
        ("tokens", {"attention_head_dim": [1]}, "cannot be read"),
    ],
)
def test_config_of_another_network_is_refused_by_its_field(
    name: str, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    net = unet(name)
    write(tmp_path, denoisers.as_diffusers(network_tensors(net), facts_of(net)))
    config = tmp_path / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    assert message in refused(tmp_path)


def test_strange_and_missing_tensors_of_diffusers(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    net = unet("unconditional")
    write(tmp_path, denoisers.as_diffusers(network_tensors(net), facts_of(net)))
    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    whole = load_file(file)
    save_file(whole | {"down_blocks.0.motion_modules.0.weight": torch.ones(1)}, file)
    assert "motion_modules.0.weight: no UNet of diffusers" in refused(tmp_path)
    gone = "mid_block.attentions.0.to_k.bias"
    save_file({k: v for k, v in whole.items() if k != gone}, file)
    assert "mid_block.attentions.0 lacks to_k.bias" in refused(tmp_path)
    (tmp_path / "unet" / "config.json").unlink()
    assert "needs diffusers' config.json beside it" in refused(tmp_path)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"multipliers": [2, 3], "attention_factors": [2], "heads": 1}, "first multiplier is 1"),
        ({"multipliers": [1, 2], "attention_factors": [1, 2], "heads": 4}, "one number for all"),
        (
            {"multipliers": [1, 2], "attention_factors": [2], "heads": 1, "context_dim": 24, "resblock_updown": True},
            "by convolutions only",
        ),
    ],
)
def test_what_diffusers_cannot_express_is_refused(options: dict[str, Any], message: str) -> None:
    net = UNet(in_channels=4, out_channels=4, width=32, blocks=1, **options)
    with pytest.raises(WeightsError, match=message):
        denoisers.as_diffusers(network_tensors(net), facts_of(net))


def test_networks_without_an_official_place_are_refused() -> None:
    for net in (DiT(4, 4, 8, 1, 2), UNet(4, 4, 32, [1, 2], 1, [2], heads=1, vector_dim=8)):
        with pytest.raises(WeightsError, match="the official UNet has no place for it"):
            official_unet.from_ours(Copies(network_tensors(net), None))


# ---- schedules -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [LinearSqrtBeta(), Linear(), Cosine(), LinearSqrtBeta(T=50)])
def test_scheduler_config_says_the_schedule(schedule: Any) -> None:
    """Ours → scheduler_config.json → diffusers' own table, and back."""
    diffusers = pytest.importorskip("diffusers")
    config = json.loads(json.dumps(schedules.make_scheduler(schedule.alpha_bar_T, "v")))
    alpha_bar_T, target = schedules.read_scheduler(config)
    assert target == "v" and schedules.difference(alpha_bar_T, schedule.alpha_bar_T) is None
    theirs = diffusers.DDIMScheduler.from_config(config)
    assert theirs.config.prediction_type == "v_prediction" and not theirs.config.clip_sample
    assert torch.allclose(theirs.alphas_cumprod.double(), schedule.alpha_bar_T, rtol=1e-3, atol=1e-7)


def test_published_schedulers_are_read_and_told_apart() -> None:
    """The public folders of the paper's models write beta_schedule=scaled_linear, the paper's own."""
    said = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195}
    alpha_bar_T, target = schedules.read_scheduler(said)
    assert target == "eps" and schedules.difference(alpha_bar_T, LinearSqrtBeta().alpha_bar_T) is None
    other = schedules.difference(alpha_bar_T, LinearSqrtBeta(beta_end=0.0205).alpha_bar_T)
    assert other is not None and "alphas_cumprod[999] is 0.00014" in other
    assert (
        schedules.difference(alpha_bar_T, LinearSqrtBeta(T=50).alpha_bar_T)
        == "it has 1000 steps in the file and 50 here"
    )
    plain, _ = schedules.read_scheduler(said | {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02})
    assert schedules.difference(plain, Linear().alpha_bar_T) is None
    for change, message in (
        ({"beta_schedule": "squaredcos_cap_v2"}, "beta_schedule=squaredcos_cap_v2"),
        ({"prediction_type": "flow"}, "prediction_type=flow"),
    ):
        with pytest.raises(WeightsError, match=message):
            schedules.read_scheduler(said | change)
