"""Muon: steps along the orthogonalised momentum for weights between hidden layers, AdamW for all other parameters.

Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; the length of a step is that of Liu et
al. 2025 (arXiv 2502.16982, eq. 4), so that one learning rate and one weight decay suit both rules.
torch.optim.Muon takes matrices alone and no other parameters; most weights of a UNet are convolutions.

Letters: O outputs, I inputs of a layer (of a convolution: input channels times kernel positions).
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ldmlab.training.dtensors import placed, whole

HIDDEN = 16  # inputs and outputs from which on a layer counts as hidden: the latent's own side has fewer channels
MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic whose iteration takes singular values to 0.7 … 1.2
ITERATIONS = 5
ADAM_RMS = 0.2  # root mean square of AdamW's usual step over its learning rate (2502.16982, §2.2)


class Muon(torch.optim.AdamW):
    """AdamW, except for the weights of `hidden_weights`, which take orthogonalised steps.

    Args as AdamW's; `lr` and `weight_decay` act on all parameters, `betas` on those of AdamW alone. Of a sharded module, each
    hidden weight's direction is gathered and orthogonalised on every rank, which then moves its own part.
    """

    def __init__(self, module: nn.Module, lr: float, betas: tuple[float, float], weight_decay: float):
        hidden = hidden_weights(module)
        ours = {id(weight) for weight in hidden}
        rest = [p for p in module.parameters() if p.requires_grad and id(p) not in ours]
        groups: list[dict[str, Any]] = [{"params": hidden, "muon": True}, {"params": rest, "muon": False}]
        fused = all(p.device.type in ("cuda", "cpu") for p in rest)
        super().__init__([g for g in groups if g["params"]], lr=lr, betas=betas, weight_decay=weight_decay, fused=fused)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of all parameters that have a gradient. Gradients of hidden weights are freed, so that AdamW skips them."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["muon"]:
                for weight in group["params"]:
                    if weight.grad is not None:
                        self._turn(weight, group["lr"], group["weight_decay"])
                        weight.grad = None
        super().step()
        return loss

    def _turn(self, weight: Tensor, lr: float, weight_decay: float) -> None:
        gradient, state = weight.grad, self.state[weight]
        assert gradient is not None
        if not state:
            state["step"] = torch.zeros(())  # AdamW asks every state for one when it is loaded
            state["momentum"] = torch.zeros_like(weight)
        state["step"] += 1
        state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        ahead_OI = whole(gradient.lerp(state["momentum"], MOMENTUM)).flatten(1)  # Nesterov's look ahead
        length = ADAM_RMS * math.sqrt(max(ahead_OI.shape))
        weight.mul_(1 - lr * weight_decay)
        weight.add_(placed(orthogonalised(ahead_OI).view(weight.shape), weight), alpha=-lr * length)


def hidden_weights(module: nn.Module) -> list[Tensor]:
    """Trainable weights of linear maps and convolutions with at least `HIDDEN` inputs and outputs: matrices between features.

    Not the latent's own side, biases, norms and tables of embeddings, whose rows are not mixed by a product.
    """
    layers = [m for m in module.modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d)]
    return [m.weight for m in layers if m.weight.requires_grad and min(m.weight.shape[:2]) >= HIDDEN]


def orthogonalised(matrix_OI: Tensor) -> Tensor:
    """Nearly U Vᵀ of the matrix U S Vᵀ, [O, I] float32: singular values from about 0.01 of the norm up become 0.7 … 1.2.

    The Newton-Schulz iteration X ← (a + b X Xᵀ + c (X Xᵀ)²) X, done on the smaller Gram matrix alone: the factors commute, so
    their product is gathered first and meets the long side once. A matrix of zeros stays zero.
    """
    wide = matrix_OI.shape[0] <= matrix_OI.shape[1]
    x = matrix_OI.float() if wide else matrix_OI.float().T
    x = x / x.norm().clamp(min=1e-7)
    gram = x @ x.T
    product = factor = quintic(gram)
    for _ in range(ITERATIONS - 1):
        gram = factor @ gram @ factor
        factor = quintic(gram)
        product = factor @ product
    x = product @ x
    return x if wide else x.T


def quintic(gram: Tensor) -> Tensor:
    """What one iteration multiplies X by: a + b X Xᵀ + c (X Xᵀ)²."""
    a, b, c = COEFFICIENTS
    return a * torch.eye(len(gram), device=gram.device) + b * gram + c * (gram @ gram)
