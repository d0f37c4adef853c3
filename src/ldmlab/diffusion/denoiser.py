"""Network and conditioner as the one module that is trained, and the callable that samplers call.

Shape letters: B batch, C channels, H W space.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ldmlab.conditioning.base import Cond, Conditioner, Size
from ldmlab.diffusion.objectives import Objective, Prediction
from ldmlab.networks.compiled import Replayed

Denoise = Callable[[Tensor, Tensor, Any], Prediction]  # (z_t [B, C, H, W], t_B whole times, condition) → Prediction


class Denoiser(nn.Module):
    """A network with its conditioner; call it, so that a distributed wrapper sees every gradient.

    Args:
        network: `forward(z_BCHW, t_B, cond) -> out_BCHW`.
        conditioner: `forward(batch) -> cond`, `null(batch_size, size, device) -> cond` (ldmlab.conditioning.base).

    closed_form: whether it is fitted in closed form and draws its samples itself, without a sampler (`diffusion.gaussian`).
    """

    closed_form = False

    def __init__(self, network: nn.Module, conditioner: Conditioner):
        super().__init__()
        self.network = network
        self.conditioner = conditioner
        self.replayed: Replayed | None = None  # what `denoise` asks in the place of the network (`record`)
        self.bf16_on: str | None = None  # the kind of device it multiplies in bfloat16 on (`use_bf16`)

    def forward(self, zt_BCHW: Tensor, t_B: Tensor, batch: dict[str, Any], drop_B: Tensor | None = None) -> Tensor:
        """The network's answer for z_t under the batch's condition; the null one where `drop_B` (bool) is true, as guidance
        training needs (Ho & Salimans 2022). [B, P]: of each of P conditions by itself.

        z_t and t as the objective shows them (`Objective.inputs`).
        """
        if drop_B is not None and drop_B.ndim == 2:
            dropped = self.conditioner.dropped(batch, drop_B, size_of(zt_BCHW))  # type: ignore[attr-defined]
            return self.network(zt_BCHW, t_B, dropped)
        cond = self.condition(batch)
        if drop_B is not None:
            cond = cond.select(drop_B, self.null(len(drop_B), size_of(zt_BCHW), drop_B.device))
        return self.network(zt_BCHW, t_B, cond)

    def condition(self, batch: dict[str, Any]) -> Cond:
        """The condition of a batch."""
        return self.conditioner(batch)

    def null(self, batch_size: int, size: Size, device: torch.device | str) -> Cond:
        """The condition "nothing asked" for latents of `size` (height, width)."""
        return self.conditioner.null(batch_size, size, device)

    def prepared(self, cond: Any) -> Any:
        """A condition for many calls: its tokens are read by the network once. For weights that stay."""
        with self._precision():
            return self.network.prepared(cond)  # type: ignore[operator]

    def record(self) -> None:
        """From now on `denoise` replays the network as CUDA graphs; for weights that stay."""
        self.replayed = Replayed(self.network)

    def use_bf16(self, device: torch.device) -> None:
        """From now on `denoise` multiplies in bfloat16 (autocast). Its answer is float32: what samplers compute with it stays exact."""
        self.bf16_on = device.type

    def _precision(self) -> AbstractContextManager[object]:
        return nullcontext() if self.bf16_on is None else torch.autocast(self.bf16_on, torch.bfloat16)

    def denoise(self, objective: Objective) -> Denoise:
        """The callable that every sampler and guidance takes: `denoise(z_t, t_B, cond) -> Prediction(z0, eps)`.

        It takes a ready condition, so that a fixed one is encoded once per image and not once per step.
        """

        answer = self.network if self.replayed is None else self.replayed

        def denoise(zt_BCHW: Tensor, t_B: Tensor, cond: Any) -> Prediction:
            shown_BCHW, time_B = objective.inputs(zt_BCHW, t_B)
            with self._precision():
                out_BCHW = answer(shown_BCHW, time_B, cond)
            return objective.prediction(out_BCHW if self.bf16_on is None else out_BCHW.float(), zt_BCHW, t_B)

        return denoise


def size_of(z_BCHW: Tensor) -> Size:
    """Height and width."""
    return z_BCHW.shape[2], z_BCHW.shape[3]


def denoise_with(denoiser: Denoiser, objective: Objective) -> Denoise:
    """`denoiser.denoise(objective)`."""
    return denoiser.denoise(objective)
