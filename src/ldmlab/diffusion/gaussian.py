"""A Gaussian in the place of the denoiser: what two moments of the latents draw and denoise, in closed form.

The latents of class k are taken to be N(m_k, U diag(v) Uᵀ): a mean for each class, one covariance within all of them; without
classes one mean. Samples are m_k + U diag(√v) Uᵀ n for standard normal n. This is where the deterministic way of any sampler
from z_T = n ends with ever more steps, if the schedule ends without signal (docs/paper.md#gaussian-latents).

Shape letters: B batch, C channels, H W space, D = C·H·W, K means.
"""

from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from ldmlab.autoencoders.linear_path import Moments, principal_components
from ldmlab.diffusion.denoiser import Denoise, Denoiser
from ldmlab.diffusion.linear_gaussian import gain
from ldmlab.diffusion.objectives import Objective, Prediction
from ldmlab.diffusion.schedules import Schedule
from ldmlab.errors import ConfigError
from ldmlab.ranges import Given

LARGEST = 8192  # numbers of a latent whose full covariance is fitted: half a gigabyte, minutes for its directions


class Gaussian(nn.Module):
    """Means [K, D], orthonormal directions as rows [D, D] and their variances [D]; `fit` sets them, no gradient.

    All arguments are given by the assembly: it has no options. vector_dim: classes with a mean each, of a one-hot condition; None
    for one mean.
    """

    closed_form: ClassVar[bool] = True  # it has no training: asked of a network's class before it is built

    def __init__(
        self,
        in_channels: Annotated[int, Given],
        out_channels: Annotated[int, Given],
        context_dim: Annotated[int | None, Given],
        vector_dim: Annotated[int | None, Given],
        latent_size: Annotated[int, Given],
    ):
        super().__init__()
        D = out_channels * latent_size**2
        self.channels = out_channels
        self.classes = vector_dim
        self.mean_KD = nn.Parameter(torch.zeros(vector_dim or 1, D), requires_grad=False)
        self.basis_DD = nn.Parameter(torch.zeros(D, D), requires_grad=False)
        self.variance_D = nn.Parameter(torch.zeros(D), requires_grad=False)

    def check_latent(self, height: int, width: int) -> None:
        """ConfigError for a latent of too many numbers for a full covariance."""
        D = self.channels * height * width
        if D > LARGEST:
            raise ConfigError(
                f"ldm=gaussian: this latent has {self.channels}x{height}x{width} = {D} numbers, and a full covariance is fitted to at "
                f"most {LARGEST}. Use a first stage with a larger f (ae=kl_f8), or a smaller data.resolution."
            )

    def widths(self) -> range:
        """None: its size is the latent's."""
        raise ConfigError("ldm.budget chooses a width, and ldm=gaussian has none. Leave ldm.budget out.")

    @torch.no_grad()
    def fit(self, moments: "ClassMoments") -> None:
        """Means of the classes, and the directions of the covariance within them."""
        self.mean_KD.copy_(moments.mean_KD())
        variance_D, basis_DD = principal_components(moments.within_DD())
        self.basis_DD.copy_(basis_DD)
        self.variance_D.copy_(variance_D)

    def draw(self, noise_BCHW: Tensor, cond: Any) -> Tensor:
        """Standard normal noise → latents of the same shape."""
        along_BD = noise_BCHW.flatten(1) @ self.basis_DD.T * self.variance_D.sqrt()
        return (self._mean(cond) + along_BD @ self.basis_DD).view_as(noise_BCHW)

    def expected_z0(self, zt_BCHW: Tensor, alpha_B1: Tensor, sigma_B1: Tensor, cond: Any) -> Tensor:
        """E[z_0 | z_t]: the best denoiser of these Gaussians."""
        mean_BD = self._mean(cond)
        along_BD = (zt_BCHW.flatten(1) - alpha_B1 * mean_BD) @ self.basis_DD.T
        along_BD = along_BD * gain(self.variance_D, alpha_B1, sigma_B1)
        return (mean_BD + along_BD @ self.basis_DD).view_as(zt_BCHW)

    def _mean(self, cond: Any) -> Tensor:
        return self.mean_KD if self.classes is None else cond.vector_BD @ self.mean_KD


class GaussianDenoiser(Denoiser):
    """`Gaussian` as samples and scores meet a denoiser."""

    network: Gaussian
    closed_form = True

    def prepared(self, cond: Any) -> Any:
        return cond

    def sampler(self, denoise: Denoise, zT_BCHW: Tensor, schedule: Schedule, cond: Any, noise: Any) -> Tensor:
        """z_0 from z_T ~ N(0, I) at once, called as a `samplers.Sampler` is. Only z_T and the condition matter."""
        return self.network.draw(zT_BCHW, cond)

    def denoise(self, objective: Objective) -> Denoise:
        def denoise(zt_BCHW: Tensor, t_B: Tensor, cond: Any) -> Prediction:
            alpha_B1, sigma_B1 = (
                level(t_B, zt_BCHW.dtype)[:, None] for level in (objective.schedule.alpha, objective.schedule.sigma)
            )
            z0_BCHW = self.network.expected_z0(zt_BCHW, alpha_B1, sigma_B1, cond)
            return Prediction(z0_BCHW, (zt_BCHW - alpha_B1[..., None, None] * z0_BCHW) / sigma_B1[..., None, None])

        return denoise


class ClassMoments:
    """Counts and sums of each class and products over all, float64, of any number of batches.

    Sums add up in the order of the batches, so that a pass that is taken up again from `state` ends bit for bit as an unbroken one.
    """

    def __init__(self, classes: int | None, size: int, device: torch.device | str = "cpu"):
        self.count_K = torch.zeros(classes or 1, dtype=torch.float64, device=device)
        self.sum_KD = torch.zeros(classes or 1, size, dtype=torch.float64, device=device)
        self.noise_D = torch.zeros(size, dtype=torch.float64, device=device)
        self.all = Moments(size, device)

    def update(self, z_BCHW: Tensor, label_B: Tensor | None, variance_BCHW: Tensor | None = None) -> None:
        """Take in latents. variance_BCHW: of independent noise on top of them (a posterior's), whose samples are meant."""
        z_BD = z_BCHW.detach().double().flatten(1)
        class_B = torch.zeros(len(z_BD), dtype=torch.long) if label_B is None else label_B.long()
        class_B = class_B.to(z_BD.device)
        self.count_K.index_add_(0, class_B, torch.ones_like(class_B, dtype=torch.float64))
        self.sum_KD.index_add_(0, class_B, z_BD)
        self.all.update(z_BD)
        if variance_BCHW is not None:
            self.noise_D += variance_BCHW.double().flatten(1).sum(0)

    def mean_KD(self) -> Tensor:
        """The mean of each class; of a class without images the mean of all."""
        seen_K1 = (self.count_K > 0)[:, None]
        return torch.where(seen_K1, self.sum_KD / self.count_K.clamp_min(1)[:, None], self.all.mean())

    def within_DD(self) -> Tensor:
        """Covariance within classes (divisor N). With the spread of the means it is the covariance of all."""
        count = self.all.count
        between_DD = (self.mean_KD() * self.count_K[:, None]).T @ self.mean_KD()
        return (self.all.product_PP - between_DD + torch.diag(self.noise_D)) / count

    def state(self) -> dict[str, Tensor]:
        """Everything that `restore` needs."""
        return {
            "count_K": self.count_K, "sum_KD": self.sum_KD, "noise_D": self.noise_D, "sum_D": self.all.sum_P,
            "product_DD": self.all.product_PP,
        }  # fmt: skip

    def restore(self, state: dict[str, Tensor]) -> None:
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
        self.all.count = round(float(self.count_K.sum()))
