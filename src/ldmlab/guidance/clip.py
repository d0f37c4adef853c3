"""CLIP guidance: the decoded prediction is pushed towards a text, as a CLIP model sees it.

The rule is that of guidance by an image (docs/paper.md#guidance) with log p = s cos(image, text), s the scale that CLIP itself has
learnt for its cosines. CLIP saw no noise: what it is shown is the prediction of z_0.

Shape letters: B batch, C channels, H W space, D features.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from torch import Tensor

from ldmlab.conditioning import outside
from ldmlab.conditioning.clip import Clip, content
from ldmlab.diffusion.denoiser import Denoise
from ldmlab.errors import ConfigError
from ldmlab.guidance.base import Binding, Guidance, Results, SampleCost, with_interval
from ldmlab.guidance.gradient import LogP
from ldmlab.guidance.image import image_guided
from ldmlab.guidance.interval import within
from ldmlab.ranges import File, Given, Interval, Scale

OPTION = "guidance.clip.model"


@dataclass(frozen=True)
class ClipGuidance(Guidance):
    """Guidance towards a text, of any denoiser, whatever it was trained with.

    Args:
        model: a local folder with a CLIP model, as `transformers` writes it; null: none is given yet, which is an error.
        prompt: the text.
        scale: of the gradient of CLIP's own log-probability; 1 takes it as it is.
        interval: sigma / alpha where it acts; None: everywhere.
    """

    name: ClassVar[str] = "clip"

    model: File | None = None
    prompt: str = ""
    scale: Scale = 1.0
    interval: Interval | None = None
    log_p: Annotated[LogP | None, Given] = None
    bound: Annotated[Binding | None, Given] = None

    @property
    def folder(self) -> Path:
        """ConfigError where there is none."""
        if self.model is None:
            raise ConfigError(f"{OPTION} is not set: guidance=clip needs a CLIP model. Give a local folder.")
        found = outside.folder(self.model, OPTION)
        if not (found / outside.CONFIG).is_file():
            raise ConfigError(
                f"{OPTION}={self.model} holds no {outside.CONFIG}. Give the folder of a CLIP model of transformers."
            )
        return found

    def options(self) -> dict[str, Any]:
        own = {"scale": float(self.scale), "prompt": self.prompt, "model": content(self.folder, OPTION)}
        return with_interval(own, self.interval)

    def card(self) -> dict[str, Any]:
        own = self.options()
        return {**own, "model": own["model"][:12]}

    def words(self) -> str:
        return f"clip {self.scale:g} ({self.prompt!r})"

    def check(self, resolution: int) -> None:
        if not self.prompt.strip():
            raise ConfigError("guidance.clip.prompt is empty. Give the text to be guided towards.")
        content(self.folder, OPTION)

    def load(self, results: Results) -> "ClipGuidance":
        net = Clip(self.folder, OPTION, results.device)
        text_1D = net.texts([self.prompt])

        def log_p(z0_BCHW: Tensor) -> Tensor:
            image_BCHW = (results.decode_with_slope(z0_BCHW) + 1) / 2
            return net.similarity_scale * (net.embedded(image_BCHW) * text_1D).sum(dim=1)

        return self.with_values(log_p=log_p)

    def cost(self, cost: SampleCost) -> None:
        """The gradient runs back through the denoiser, and forth and back through the decoder; CLIP itself is not counted."""
        cost.backward = 2.0
        cost.extra += 2 * cost.evaluations * cost.decode

    def wrap(self, denoise: Denoise) -> Denoise:
        assert self.log_p is not None and self.bound is not None
        inside = image_guided(denoise, self.log_p, self.scale, self.bound.schedule)
        return within(inside, denoise, self.interval, self.bound.schedule)
