"""The official layout of first stages (CompVis ldm/models/autoencoder.py, `AutoencoderKL` and `VQModel`) ↔ ours.

    official                                            ours
    encoder.* decoder.* quant_conv.* post_quant_conv.*  network.<the same>
    quantize.*                                          regulariser.*
    loss.*  model_ema.*  colorize                       not part of the first stage

Pure functions from names to tensors; a tensor is never changed, so a round trip is bit-identical.
"""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from ldmlab.errors import WeightsError

NETWORK = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
CODEBOOK = "quantize."
FIRST_STAGE = "first_stage_model."  # prefix inside a whole latent-diffusion checkpoint
ASIDE = ("loss.", "model_ema.", "colorize")
"""Discriminator, LPIPS and log-variance; the averaged copy; a projection for logging. The averaged copy (`use_ema`) is
not what the official diffusion reads: `init_from_ckpt` loads the raw weights, and no released first stage has one."""

GROUPS = 32  # of every normalisation in the official code, at any width


class Layout(NamedTuple):
    """What the tensors' names and shapes say about the network; the options of `ConvNetwork`, and the codebook."""

    c: int
    multipliers: list[int]
    width: int
    blocks: int
    attention_factors: list[int]
    middle_attention: bool
    moments: int  # channels of the encoder's output: 2c for KL, c for VQ
    codes: int | None

    @property
    def widths(self) -> list[int]:
        """Channels of each level, full resolution first."""
        return [self.width * m for m in self.multipliers]


def is_official(names: Mapping[str, Tensor]) -> bool:
    """Whether the names are the official ones."""
    return any(name.startswith(("encoder.down.", "decoder.up.")) for name in names)


def first_stage(whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The first stage's part of a state dict: `first_stage_model.*` of a whole model, without what is set aside."""
    inside = {k.removeprefix(FIRST_STAGE): v for k, v in whole.items() if k.startswith(FIRST_STAGE)}
    return {k: v for k, v in (inside or whole).items() if not k.startswith(ASIDE)}


def to_ours(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of `Autoencoder.state_dict()`, without scale and shift. Raises WeightsError for a name of no first stage."""
    ours, strange = {}, []
    for name, tensor in official.items():
        if name.startswith(NETWORK):
            ours[f"network.{name}"] = tensor
        elif name.startswith(CODEBOOK):
            ours[f"regulariser.{name.removeprefix(CODEBOOK)}"] = tensor
        else:
            strange.append(name)
    if strange:
        raise WeightsError(
            f"{some(strange)}: no first stage has {'this name' if len(strange) == 1 else 'these names'}."
        )
    return ours


def from_ours(ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The official names; scale and shift, which are ours alone, are left out."""
    official = {}
    for name, tensor in ours.items():
        if name.startswith("network."):
            official[name.removeprefix("network.")] = tensor
        elif name.startswith("regulariser."):
            official[CODEBOOK + name.removeprefix("regulariser.")] = tensor
    return official


def layout_of(official: Mapping[str, Tensor]) -> Layout | None:
    """The structure behind official names and shapes; None when they are no network of this family."""
    try:
        levels = 1 + max(int(name.split(".")[2]) for name in official if name.startswith("encoder.down."))
        widths = [official[f"encoder.down.{level}.block.0.conv1.weight"].shape[0] for level in range(levels)]
        width = official["encoder.conv_in.weight"].shape[0]
        codebook = official.get("quantize.embedding.weight")
        return Layout(
            c=official["decoder.conv_in.weight"].shape[1],
            multipliers=[w // width for w in widths],
            width=width,
            blocks=sum(f"encoder.down.0.block.{b}.conv1.weight" in official for b in range(len(official))),
            attention_factors=[2**i for i in range(levels) if f"encoder.down.{i}.attn.0.q.weight" in official],
            middle_attention="encoder.mid.attn_1.q.weight" in official,
            moments=official["encoder.conv_out.weight"].shape[0],
            codes=None if codebook is None else codebook.shape[0],
        )
    except (KeyError, ValueError, IndexError):
        return None


def some(names: list[str], most: int = 3) -> str:
    """The first few names."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
