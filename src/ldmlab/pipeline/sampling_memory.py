"""How much memory sampling takes at its peak, counted on tensors without contents: of a step of the denoiser, and of decoding."""

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ldmlab.conditioning.base import Cond
from ldmlab.diffusion.windows import Window
from ldmlab.pipeline import large
from ldmlab.pipeline.live_memory import peak_bytes, tensors_of

if TYPE_CHECKING:
    from ldmlab.pipeline.resolved import Resolved

LATENTS = (
    6  # of the whole size that a sampler keeps beside what the network works on: z, z_0 and eps, their sums, one before
)


@dataclass(frozen=True)
class Peak:
    """Bytes, weights of first stage and denoiser included. batch: samples at once."""

    step: int
    decode: int
    batch: int

    def words(self) -> str:
        parts = f"a step {gigabytes(self.step)}, decoding {gigabytes(self.decode)}"
        return f"peak {gigabytes(max(self.step, self.decode))} with {self.batch} at once ({parts})"


def gigabytes(count: int) -> str:
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"


@torch.no_grad()
def peak_of(found: "Resolved") -> Peak:
    """Of samples as `size` and `large` ask for them. Without gradients: guidance by an image keeps more."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    batch, shape = large.at_once(found), found.sampled_shape
    pair = 2 * batch if found.sampler.guidance != 1 else batch
    null = found.denoiser.null(pair, shape[1:], "meta")
    windows = large.windows_of(found.cfg, found.autoencoder.f)
    window = windows.places(*shape[1:])[0] if windows else Window(slice(None), slice(None))
    network, ae = copy.deepcopy(found.denoiser.network).eval(), copy.deepcopy(found.autoencoder).eval()
    ae.tile = large.tile_of(found.cfg)
    with FakeTensorMode():
        lose_numbers(network, ae)
        weights = [*tensors_of(network), *tensors_of(ae)]
        cond = Cond(
            *(None if part is None else like(part) for part in (null.tokens_BLD, null.concat_BCHW, null.vector_BD))
        )
        z, t = torch.empty(pair, *shape), torch.zeros(pair, dtype=torch.int64)
        held = [*weights, *(torch.empty(batch, *shape) for _ in range(LATENTS)), *parts_of(cond), z]
        step = peak_bytes(lambda: network(window.of(z), t, window.of_condition(cond)), held, torch.device("cpu"))
        z = torch.empty(batch, *shape)
        decode = peak_bytes(lambda: ae.decode(z), [*weights, z], torch.device("cpu"))
    return Peak(step, decode, batch)


def lose_numbers(*modules: nn.Module) -> None:
    """Parameters and buffers become tensors of the CPU without contents; within FakeTensorMode."""
    for each in (each for module in modules for each in module.modules()):
        for tensors in (each._parameters, each._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = like(tensor)  # type: ignore[assignment]


def like(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype)


def parts_of(cond: Cond) -> list[Tensor]:
    return [part for part in (cond.tokens_BLD, cond.concat_BCHW, cond.vector_BD) if part is not None]
