"""The official layout of denoisers (CompVis ldm/models/diffusion/ddpm.py, openaimodel.py `UNetModel`) ↔ ours.

    official                                            ours
    model.diffusion_model.<name>                        network.<name>
    model_ema.diffusion_model<name without its dots>    network.<name> of the averaged copy
    cond_stage_model.<name>                             conditioner.<name>
    first_stage_model.*                                 the first stage's (compvis.py)
    betas alphas_cumprod …                              the objective's schedule (schedules.py)
    model_ema.decay model_ema.num_updates               how the averaged copy was made
    scale_factor                                        the latent's scale, where it was measured (scale_by_std)

The official code averages the UNet alone: beside an averaged UNet it samples with the conditioner as trained last.

Pure functions from names to tensors; a tensor is never changed, so a round trip is bit-identical. How many heads an
attention has is in no tensor's shape (docs/paper.md#heads), so it cannot be read from the file.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ldmlab.errors import WeightsError
from ldmlab.interop.compvis import FIRST_STAGE, some

UNET = "model.diffusion_model."
EMA = "model_ema."
CONDITIONER = "cond_stage_model."
BUFFERS = {
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance",
    "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2", "lvlb_weights", "logvar",
    "scale_factor", "cond_ids", "model_ema.decay", "model_ema.num_updates",
}  # fmt: skip
"""What `register_schedule` and `LitEma` keep beside the weights."""

FAMILY = ("time_embed.", "input_blocks.", "middle_block.", "output_blocks.", "out.")  # a UNet file without prefixes


class Copies(NamedTuple):
    """The two copies that a file may hold, by the names of `Denoiser.state_dict()`."""

    raw: dict[str, Tensor]
    ema: dict[str, Tensor] | None


class Average(NamedTuple):
    """How an averaged copy was made: what the official average goes on from (`LitEma`, ldm/modules/ema.py)."""

    decay: float
    num_updates: int  # optimiser steps so far; -1: the decay was never warmed up


class UNetLayout(NamedTuple):
    """What names and shapes say about a UNet: options of `networks.unet.UNet`, and what the assembly gives it."""

    in_channels: int
    out_channels: int
    width: int
    multipliers: list[int]
    blocks: int
    attention_factors: list[int]
    transformer_depth: int  # 0 without tokens
    context_dim: int | None
    scale_shift_norm: bool
    resblock_updown: bool

    @property
    def attended(self) -> list[bool]:
        """Whether each level has attention, full size first."""
        return [2**level in self.attention_factors for level in range(len(self.multipliers))]


def is_official(names: Mapping[str, Tensor]) -> bool:
    """Whether it is a latent-diffusion checkpoint, or its UNet alone."""
    return any(name.startswith((f"{UNET}input_blocks.", "input_blocks.")) for name in names)


def to_ours(whole: Mapping[str, Tensor], averaged_conditioner: Mapping[str, Tensor]) -> Copies:
    """The denoiser's part of a state dict. `averaged_conditioner`: of an export of ours, which the official names lack.

    Raises WeightsError for names that no latent diffusion model has, and for an averaged copy of another network.
    """
    if not any(name.startswith(UNET) for name in whole):
        strange = [name for name in whole if not name.startswith(FAMILY)]
        _refuse(strange, "no UNet has")
        return Copies({f"network.{name}": tensor for name, tensor in whole.items()}, None)
    strange = [n for n in whole if n not in BUFFERS and not n.startswith((UNET, EMA, CONDITIONER, FIRST_STAGE))]
    _refuse(strange, "no latent diffusion model has")
    unet = {name.removeprefix(UNET): tensor for name, tensor in whole.items() if name.startswith(UNET)}
    conditioner = (
        {}
        if is_first_stage_twice(whole)
        else {
            f"conditioner.{name.removeprefix(CONDITIONER)}": tensor
            for name, tensor in whole.items()
            if name.startswith(CONDITIONER)
        }
    )
    ours = {f"network.{name}": tensor for name, tensor in unet.items()}
    averaged = {name: tensor for name, tensor in whole.items() if name.startswith(EMA) and name not in BUFFERS}
    if not averaged:
        return Copies(ours | conditioner, None)
    dotless = {ema_name(name): f"network.{name}" for name in unet}
    _refuse([name for name in averaged if name not in dotless], "no tensor of model.diffusion_model has")
    if missing := [name for name in dotless if name not in averaged]:
        raise WeightsError(f"the averaged copy (model_ema.*) lacks {len(missing)} tensors: {some(missing)}.")
    ema = {ours_name: averaged[name] for name, ours_name in dotless.items()}
    return Copies(ours | conditioner, ema | {**conditioner, **averaged_conditioner})


def from_ours(copies: Copies) -> dict[str, Tensor]:
    """The official names of both copies, the conditioner as it is in the raw one.

    Raises WeightsError for parts that the official UNet does not have.
    """
    official = {}
    for name, tensor in copies.raw.items():
        if name.startswith("conditioner."):
            official[CONDITIONER + name.removeprefix("conditioner.")] = tensor
        else:
            official[UNET + unet_name(name)] = tensor
    for name, tensor in (copies.ema or {}).items():
        if not name.startswith("conditioner."):
            official[ema_name(unet_name(name))] = tensor
    return official


def is_first_stage_twice(whole: Mapping[str, Tensor]) -> bool:
    """Whether the condition is read by the first stage itself (`cond_stage_config: __is_first_stage__`, inpainting), whose
    tensors a checkpoint then holds under both names. Ours asks the run's first stage (`conditioning.inpaint`)."""
    pairs = [(FIRST_STAGE + n.removeprefix(CONDITIONER), v) for n, v in whole.items() if n.startswith(CONDITIONER)]
    return bool(pairs) and all(name in whole and torch.equal(whole[name], tensor) for name, tensor in pairs)


def read_average(whole: Mapping[str, Tensor]) -> Average | None:
    """What a checkpoint says of its averaged copy; None when it says nothing."""
    decay, updates = whole.get(f"{EMA}decay"), whole.get(f"{EMA}num_updates")
    return None if decay is None or updates is None else Average(float(decay), int(updates))


def average_buffers(average: Average) -> dict[str, Tensor]:
    """The buffers of `LitEma`, with its own types."""
    return {
        f"{EMA}decay": torch.tensor(average.decay, dtype=torch.float32),
        f"{EMA}num_updates": torch.tensor(average.num_updates, dtype=torch.int),
    }


def ema_name(name: str) -> str:
    """The averaged copy's name of a UNet tensor: `diffusion_model.` before it, all dots gone (ldm/modules/ema.py)."""
    return EMA + f"diffusion_model.{name}".replace(".", "")


def unet_name(name: str) -> str:
    """The UNet's own name of a tensor of ours. Raises WeightsError when the official UNet has no place for it."""
    inner = name.removeprefix("network.")
    if not inner.startswith(FAMILY):
        raise WeightsError(
            f"{name}: the official UNet has no place for it. Only ldmlab.networks.unet.UNet without a vector condition "
            "can be written for others; our own files (weights.safetensors, ema.safetensors) hold every network."
        )
    return inner


def layout_of(unet: Mapping[str, Tensor]) -> UNetLayout | None:
    """The structure behind the names and shapes of a UNet alone; None when they are no network of this family."""
    try:
        count = 1 + max(int(name.split(".")[1]) for name in unet if name.startswith("output_blocks."))
        ups = [_where(name) for name in unet if _changes_size(name)]
        per_level = 1 + min((index for index, _ in ups), default=count - 1)  # blocks + 1
        levels, blocks = count // per_level, per_level - 1
        first = [1 + level * per_level for level in range(levels)]
        widths = [unet[f"input_blocks.{i}.0.in_layers.2.weight"].shape[0] for i in first]
        width, inputs = unet["input_blocks.0.0.weight"].shape[:2]
        tokens = unet.get("middle_block.1.transformer_blocks.0.attn2.to_k.weight")
        if any(w % width for w in widths) or count % per_level:
            return None
        return UNetLayout(
            in_channels=inputs,
            out_channels=unet["out.2.weight"].shape[0],
            width=width,
            multipliers=[w // width for w in widths],
            blocks=blocks,
            attention_factors=[2**level for level, i in enumerate(first) if f"input_blocks.{i}.1.norm.weight" in unet],
            transformer_depth=sum(f"middle_block.1.transformer_blocks.{k}.norm1.weight" in unet for k in range(99)),
            context_dim=None if tokens is None else tokens.shape[1],
            scale_shift_norm=unet["middle_block.0.emb_layers.1.weight"].shape[0] == 2 * widths[-1],
            resblock_updown=any("in_layers" in name for name in unet if _changes_size(name)),
        )
    except (KeyError, ValueError, IndexError):
        return None


def _where(name: str) -> tuple[int, int]:
    """(block, piece) of output_blocks.<block>.<piece>.…"""
    return int(name.split(".")[1]), int(name.split(".")[2])


def _changes_size(name: str) -> bool:
    """Whether it is of a block's last piece that doubles the size: a convolution, or a residual block behind another."""
    if not name.startswith("output_blocks."):
        return False
    return name.endswith(".conv.weight") or (_where(name)[1] > 0 and ".in_layers.0.weight" in name)


def _refuse(names: list[str], who: str) -> None:
    if names:
        raise WeightsError(f"{some(names)}: {who} {'this name' if len(names) == 1 else 'these names'}.")
