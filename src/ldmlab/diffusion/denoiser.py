"""Network and conditioner as the one module that is trained, and the callable that samplers call.

Shape letters: B batch, C channels, H W space.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ldmlab.diffusion.objectives import Objective, Prediction

Denoise = Callable[[Tensor, Tensor, Any], Prediction]  # (z_t [B, C, H, W], t_B whole times, condition) → Prediction


class Denoiser(nn.Module):
    """A network with its conditioner; call it, so that a distributed wrapper sees every gradient.

    Args:
        network: `forward(z_BCHW, t_B, cond) -> out_BCHW`.
        conditioner: `forward(batch) -> cond`, `null(batch_size, device) -> cond` (ldmlab.conditioning.base).
    """

    def __init__(self, network: nn.Module, conditioner: nn.Module):
        super().__init__()
        self.network = network
        self.conditioner: Any = conditioner

    def forward(self, zt_BCHW: Tensor, t_B: Tensor, batch: dict[str, Any], drop_B: Tensor | None = None) -> Tensor:
        """The network's answer for z_t under the batch's condition; the null one where `drop_B` (bool) is true.

        z_t and t as the objective shows them (`Objective.inputs`).
        """
        return self.network(zt_BCHW, t_B, self.condition(batch, drop_B))

    def condition(self, batch: dict[str, Any], drop_B: Tensor | None = None) -> Any:
        """The condition of a batch (`Cond`); dropped per example, as guidance training needs (Ho & Salimans 2022)."""
        cond = self.conditioner(batch)
        if drop_B is None:
            return cond
        return cond.select(drop_B, self.conditioner.null(len(drop_B), drop_B.device))

    def prepared(self, cond: Any) -> Any:
        """A condition for many calls: its tokens are read by the network once. For weights that stay."""
        return self.network.prepared(cond)  # type: ignore[operator]


def denoise_with(denoiser: Denoiser, objective: Objective) -> Denoise:
    """The callable that every sampler and guidance takes: `denoise(z_t, t_B, cond) -> Prediction(z0, eps)`.

    It takes a ready condition, so that a fixed one is encoded once per image and not once per step.
    """

    def denoise(zt_BCHW: Tensor, t_B: Tensor, cond: Any) -> Prediction:
        shown_BCHW, time_B = objective.inputs(zt_BCHW, t_B)
        return objective.prediction(denoiser.network(shown_BCHW, time_B, cond), zt_BCHW, t_B)

    return denoise
