"""Vector quantisation whose codebook follows the encoder by moving averages (van den Oord et al., arXiv 1711.00937, App. A.1),
with dead codes restarted (Dhariwal et al., Jukebox, arXiv 2005.00341, Sec. 3.1).

Ours, because a result here may depend on neither ranks nor micro-batches nor restarts: sums are collected over the step's
micro-batches and ranks and applied once, at its end. (vector-quantize-pytorch updates in every forward pass and draws its
restarts from the global generator; it is the oracle of the tests.)

Shape letters: B batch, C channels, H W space, M = B·H·W vectors, K codes, P candidates.
"""

from collections.abc import Callable, Iterable
from typing import Annotated, Literal

import torch
from torch import Tensor

from ldmlab.autoencoders.regularisers.base import Regularised, counted, usage, widen
from ldmlab.autoencoders.regularisers.vq import VQ
from ldmlab.errors import ConfigError
from ldmlab.randomness import philox
from ldmlab.ranges import Codes, Given, Share, Weight

CANDIDATES = 16  # vectors an image offers for restarts, spread evenly over its positions
SMOOTHING = 1e-5  # Laplace smoothing of the counts


class EMAVQ(VQ):
    """As VQ, but the codebook has no gradient:

        N_k ← γ N_k + (1 − γ) n_k,    m_k ← γ m_k + (1 − γ) Σ h,    e_k = m_k / N_k

    with n_k vectors of the step nearest to code k and Σ h their sum. The loss is the commitment term alone.

    beta           weight of the commitment term ‖sg(z_q) − z‖²
    decay          γ
    start          as VQ
    restart_below  a code whose average count N_k falls below this share of the mean count is put on a vector of the present
                   step, with the mean count; 0 never restarts
    """

    counts_K: Tensor
    sums_KC: Tensor
    step: Tensor

    def __init__(
        self,
        c: Annotated[int, Given],
        codes: Codes,
        beta: Weight = 0.25,
        weight: Weight = 1.0,
        decay: Share = 0.99,
        restart_below: Share = 0.03,
        start: Literal["uniform", "kmeans"] = "uniform",
    ):
        super().__init__(c, codes, beta=beta, legacy=False, weight=weight, start=start)
        if not 0 < decay < 1:
            raise ConfigError(f"ae.regulariser.decay={decay} must lie between 0 and 1.")
        if not 0 <= restart_below < 1:
            raise ConfigError(f"ae.regulariser.restart_below={restart_below} must lie in [0, 1).")
        self.decay, self.restart_below = decay, restart_below
        self.embedding.weight.requires_grad_(False)
        self.register_buffer("counts_K", torch.ones(codes))
        self.register_buffer("sums_KC", self.embedding.weight.detach().clone())
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self._seen: list[tuple[Tensor, Tensor, Tensor]] = []  # per micro-batch: counts, sums, candidates

    @torch.no_grad()
    def start(self, moments: Iterable[Tensor]) -> None:
        """As VQ; each code counts as often used as any other."""
        super().start(moments)
        self.sums_KC.copy_(self.embedding.weight * self.counts_K.unsqueeze(1))

    def forward(self, h_BCHW: Tensor, noise_BCHW: Tensor | None = None) -> Regularised:
        """Quantised vectors with the straight-through gradient and the commitment term. In training it remembers what
        `on_step_end` needs (a pass without gradients, such as the discriminator's turn, leaves no trace)."""
        h_BCHW = widen(h_BCHW)
        index_BHW = self.indices(h_BCHW)
        q_BCHW = self.lookup(index_BHW).detach()
        commitment = (q_BCHW - h_BCHW).square().mean()
        count_K = counted(index_BHW, self.codes)
        if self.training and torch.is_grad_enabled():
            self.note(count_K)
            self._remember(h_BCHW.detach(), index_BHW, count_K)
        z_BCHW = h_BCHW + (q_BCHW - h_BCHW).detach()
        return Regularised(z_BCHW, self.weight * self.beta * commitment, usage(count_K))

    def _remember(self, h_BCHW: Tensor, index_BHW: Tensor, count_K: Tensor) -> None:
        h_BNC = h_BCHW.flatten(2).transpose(1, 2)
        sums_KC = h_BNC.new_zeros(self.codes, h_BNC.shape[2])
        sums_KC.index_add_(0, index_BHW.flatten(), h_BNC.flatten(0, 1))
        n = h_BNC.shape[1]
        places = torch.linspace(0, n - 1, min(CANDIDATES, n), device=h_BNC.device).round().long()
        self._seen.append((count_K.float(), sums_KC, h_BNC[:, places].flatten(0, 1)))

    @torch.no_grad()
    def on_step_end(self, gather: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Move the codebook by what the step saw on all ranks; the window's usage and how many codes were restarted."""
        if not self._seen:
            return {}
        counts, sums, candidates = (list(part) for part in zip(*self._seen, strict=True))
        self._seen = []
        n_K, s_KC = gather(torch.stack(counts).sum(0)).sum(0), gather(torch.stack(sums).sum(0)).sum(0)
        pool_PC = gather(torch.cat(candidates)).flatten(0, 1)  # ranks hold consecutive images: the order is the batch's
        self.counts_K.lerp_(n_K, 1 - self.decay)
        self.sums_KC.lerp_(s_KC, 1 - self.decay)
        self.step += 1
        restarted = self._restart(pool_PC)
        total = self.counts_K.sum()
        smooth_K = (self.counts_K + SMOOTHING) / (total + self.codes * SMOOTHING) * total
        self.embedding.weight.copy_(self.sums_KC / smooth_K.unsqueeze(1))
        return {**super().on_step_end(gather), "codes_restarted": restarted}

    def _restart(self, pool_PC: Tensor) -> Tensor:
        """Dead codes go to different vectors of the pool, in an order drawn from (step); nobody waits to learn how many there are."""
        mean = self.counts_K.mean()
        dead_K = self.counts_K < self.restart_below * mean
        place_K = dead_K.cumsum(0) - 1  # of a dead code among the dead
        dead_K = dead_K & (place_K < len(pool_PC))
        place_P = torch.arange(len(pool_PC), device=pool_PC.device)
        counter_21P = torch.stack([place_P, self.step.expand_as(place_P)])[:, None]
        word_P = philox(counter_21P, torch.zeros_like(counter_21P), torch.zeros_like(counter_21P))[0, 0]
        chosen_KC = pool_PC[word_P.argsort(stable=True)[place_K.clamp(0, len(pool_PC) - 1)]]
        self.counts_K.copy_(torch.where(dead_K, mean, self.counts_K))
        self.sums_KC.copy_(torch.where(dead_K[:, None], chosen_KC * mean, self.sums_KC))
        return dead_K.sum().float()
