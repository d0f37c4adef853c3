"""Vector quantisation with a learned codebook (official taming/modules/vqvae/quantize.py, VectorQuantizer2).

`embedding.weight` here is `quantize.embedding.weight` in the official checkpoints.

Shape letters: B batch, C channels, H W space, M = B·H·W vectors, K codes.
"""

from collections.abc import Callable, Iterable
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from ldmlab.autoencoders.kmeans import VECTORS_PER_CODE, kmeans, nearest, thinned, vectors
from ldmlab.autoencoders.regularisers.base import Posterior, Regularised, Regulariser, counted, usage, widen
from ldmlab.errors import ConfigError
from ldmlab.networks.blocks import no_autocast
from ldmlab.ranges import Codes, Given, Weight

WINDOW = 100  # steps over which the codebook's use is watched


class VQ(Regulariser):
    """Nearest code in Euclidean distance, straight-through gradient, codebook and commitment terms (means over
    elements).

    c       latent channels (passed by build, not an option)
    codes   K, the size of the codebook |Z|
    beta    the small one of the two terms' weights
    legacy  True, as all released models: beta multiplies the *codebook* term ‖z_q − sg(z)‖² and the commitment term has
            weight 1. False, as in the VQ-VAE paper: beta multiplies the *commitment* term ‖sg(z_q) − z‖². The authors
            call the first a bug that they keep for compatibility
    weight  multiplies both (official codebook_weight)
    start   uniform: within ±1/K, as officially. kmeans: on the first latents of the training images (`kmeans`), so that every
            code is somebody's nearest from the first step

    The latent that diffusion sees is the vector *before* quantisation; quantising is the decoder's first step (App. G).
    """

    stochastic = False
    quantises = True

    def __init__(
        self, c: Annotated[int, Given], codes: Codes, beta: Weight = 0.25, legacy: bool = True, weight: Weight = 1.0,
        start: Literal["uniform", "kmeans"] = "uniform",
    ):  # fmt: skip
        super().__init__()
        if codes < 2:
            raise ConfigError(f"ae.regulariser.codes={codes} must be at least 2.")
        if beta < 0 or weight < 0:
            raise ConfigError(f"ae.regulariser.beta={beta} and ae.regulariser.weight={weight} must not be negative.")
        self.codes, self.beta, self.legacy, self.weight = codes, beta, legacy, weight
        self.embedding = nn.Embedding(codes, c)
        nn.init.uniform_(self.embedding.weight, -1 / codes, 1 / codes)
        self.starts = start == "kmeans"
        self._used: Tensor | None = None  # codes of the present step
        self._idle: Tensor | None = None  # steps since each code was used

    def channels_in(self, c: int) -> int:
        """c: the vectors themselves."""
        return c

    @torch.no_grad()
    def start(self, moments: Iterable[Tensor]) -> None:
        """The codebook at the k-means of the vectors."""
        h_MC = thinned(vectors(moments).float(), VECTORS_PER_CODE * self.codes)
        self.embedding.weight.copy_(kmeans(h_MC, self.codes))

    def forward(self, h_BCHW: Tensor, noise_BCHW: Tensor | None = None) -> Regularised:
        """Quantised vectors with the straight-through gradient, weighted loss, usage and perplexity in this batch."""
        h_BCHW = widen(h_BCHW)
        index_BHW = self.indices(h_BCHW)
        q_BCHW = self.lookup(index_BHW)
        codebook = (q_BCHW - h_BCHW.detach()).square().mean()
        commitment = (q_BCHW.detach() - h_BCHW).square().mean()
        loss = commitment + self.beta * codebook if self.legacy else codebook + self.beta * commitment
        count_K = counted(index_BHW, self.codes)
        if self.training and torch.is_grad_enabled():
            self.note(count_K)
        z_BCHW = h_BCHW + (q_BCHW - h_BCHW).detach()
        return Regularised(z_BCHW, self.weight * loss, usage(count_K))

    def sample(self, h_BCHW: Tensor, noise_BCHW: Tensor | None = None) -> Tensor:
        """The vectors before quantisation."""
        return h_BCHW

    def posterior(self, h_BCHW: Tensor) -> Posterior:
        return Posterior(h_BCHW, None)

    def project(self, z_BCHW: Tensor) -> Tensor:
        """Each vector replaced by its nearest code."""
        return self.lookup(self.indices(widen(z_BCHW)))

    def indices(self, h_BCHW: Tensor) -> Tensor:
        """int64 [B, H, W] in 0..K−1."""
        B, C, H, W = h_BCHW.shape
        h_MC = h_BCHW.detach().permute(0, 2, 3, 1).reshape(-1, C)
        with no_autocast(h_MC.device.type):
            return nearest(h_MC, widen(self.embedding.weight.detach())).view(B, H, W)

    def counts(self, h_BCHW: Tensor) -> Tensor:
        """How often each code is used, int64 [K]."""
        return counted(self.indices(widen(h_BCHW)), self.codes)

    def lookup(self, index_BHW: Tensor) -> Tensor:
        """Indices → their codes, [B, C, H, W]."""
        return self.embedding(index_BHW).permute(0, 3, 1, 2)

    def note(self, count_K: Tensor) -> None:
        """Remember which codes this micro-batch used, for the window's usage."""
        used_K = count_K > 0
        self._used = used_K if self._used is None else self._used | used_K

    @torch.no_grad()
    def on_step_end(self, gather: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """`codebook_usage_window`: the share of codes used within the last `WINDOW` steps, on any rank.

        One batch of small latents cannot use a large codebook, so the usage in one batch is not informative. Counted from the start of the
        process; until then the window is as long as there were steps.
        """
        if self._used is None:
            return {}
        used_K = gather(self._used.to(torch.uint8)).bool().any(0)
        self._used = None
        self._idle = (torch.zeros_like(used_K, dtype=torch.int32) + WINDOW) if self._idle is None else self._idle
        self._idle = torch.where(used_K, 0, self._idle + 1)
        return {"codebook_usage_window": (self._idle < WINDOW).float().mean()}
