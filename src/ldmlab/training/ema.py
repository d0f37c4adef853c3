"""An exponential moving average of weights, in fp32 whatever the training precision."""

import torch
from torch import Tensor, nn

from ldmlab.training.dtensors import local, placed


def decay_at(decay: float, step: int) -> float:
    """The warm-up rule of the official code (ldm/modules/ema.py): min(decay, (1 + n) / (10 + n)) at the n-th update, n from 1."""
    return min(decay, (1 + step) / (10 + step))


class EMA:
    """avg ← d·avg + (1 − d)·weight after each optimiser step; starts as a copy of the weights.

    The average covers every parameter of the module, conditioner included; buffers are copied as they are. (The official
    code averages the UNet only, so that its samples mix an averaged UNet with a raw conditioner: docs/paper.md#averaged-weights.)
    Of a sharded module, each rank averages its own part.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.module = module
        self.names = [name for name, _ in module.named_parameters()]
        self.shadow = [p.detach().to(torch.float32, copy=True) for p in module.parameters()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        self._towards(1 - decay_at(self.decay, step))

    def _towards(self, share: float) -> None:
        """avg ← avg + share · (weight − avg)."""
        live = [local(p.detach()).float() for p in self.module.parameters()]
        torch._foreach_lerp_([local(average) for average in self.shadow], live, share)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights under the module's own names, buffers included: loads into an equal module."""
        return {**self.module.state_dict(), **dict(zip(self.names, self.shadow, strict=True))}

    def load(self, state: dict[str, Tensor]) -> None:
        for mine, name in zip(self.shadow, self.names, strict=True):
            mine.copy_(placed(state[name], mine))
