"""Guidance of super-resolution by the small image itself: the decoded prediction, made small again, shall be what was given.

The paper's App. C with T = down-sampling and y = the condition (Table 5, "LDM-4, guiding"), by squares or a perceptual distance.

Shape letters: B batch, C channels, H W pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from torch import Tensor

from ldmlab.data.degradations import DEGRADATIONS
from ldmlab.diffusion.denoiser import Denoise
from ldmlab.guidance.base import Binding, Guidance, Results, SampleCost, with_interval
from ldmlab.guidance.gradient import LogP
from ldmlab.guidance.image import image_guided, resembles, through_decoder
from ldmlab.guidance.interval import within
from ldmlab.guidance.observations import Downsample
from ldmlab.ranges import File, Given, Interval, Range, Scale

PATH = "guidance.small_image"


@dataclass(frozen=True)
class SmallImageGuidance(Guidance):
    """Guidance of each sample towards its own example at a fraction of the size.

    Args:
        scale: of the gradient of log p.
        factor: how many times smaller each side is; that of cond=superres.
        distance: "l2", log p = -1/2 ‖y - T(D(z_0))‖² over pixels in [-1, 1]; "lpips", log p = -LPIPS(y, T(D(z_0))).
        weights: LPIPS's VGG16 file, as of ae/loss/perceptual=lpips.
        interval: sigma / alpha where it acts; None: everywhere.
    """

    name: ClassVar[str] = "small_image"
    fields: ClassVar[tuple[str, ...]] = ("image", "position")

    scale: Scale
    factor: Annotated[int, Range(at_least=2, at_most=16)] = 4
    distance: Literal["l2", "lpips"] = "l2"
    weights: File | None = None
    interval: Interval | None = None
    decode: Annotated[Callable[[Tensor], Tensor] | None, Given] = None
    perceptual: Annotated[Callable[[Tensor, Tensor], Tensor] | None, Given] = None
    bound: Annotated[Binding | None, Given] = None

    def options(self) -> dict[str, Any]:
        return with_interval({"scale": self.scale, "factor": self.factor, "distance": self.distance}, self.interval)

    def words(self) -> str:
        return f"small image {self.scale:g} ({self.distance})"

    def check(self, resolution: int) -> None:
        Downsample(self.factor).check(resolution)

    def load(self, results: Results) -> "SmallImageGuidance":
        perceptual = None
        if self.distance == "lpips":
            from ldmlab.autoencoders.perceptual import LPIPS  # reads half a gigabyte

            perceptual = LPIPS(self.weights).to(results.device)
        return self.with_values(decode=results.decode_with_slope, perceptual=perceptual)

    def cost(self, cost: SampleCost) -> None:
        through_decoder(cost)

    def log_p(self) -> LogP:
        """z_0 → log-probability of each image of the batch, up to a constant."""
        assert self.bound is not None and self.decode is not None
        small, decode, perceptual = Downsample(self.factor), self.decode, self.perceptual
        image_BCHW = self.bound.batch["image"]
        given_BCHW = DEGRADATIONS["bicubic"](image_BCHW, self.bound.batch["position"], self.factor)
        if perceptual is None:
            return resembles(given_BCHW, decode, small)
        return lambda z0_BCHW: -perceptual(given_BCHW, small(decode(z0_BCHW)))

    def wrap(self, denoise: Denoise) -> Denoise:
        assert self.bound is not None
        inside = image_guided(denoise, self.log_p(), self.scale, self.bound.schedule)
        return within(inside, denoise, self.interval, self.bound.schedule)
