"""A feature extractor that is trained here: a classifier whose features also keep what a classifier could ignore.

FID compares what its features keep. A classifier may throw away contrast, brightness and sharpness, since no class depends on
them; the usual per-image norms throw the first two away by construction. So there is no norm here that looks at the image
(weights are standardised instead: Brock et al. 2101.08692; residual branches start small: De & Smith 2002.10444), and a
quarter of the features comes from two early layers that learn to name a change made on purpose
(`training.changes`: contrast, brightness, colour, blur, noise), as means and as log standard deviations over space.

It is trained by `training.classifier_loss.ClassifierLoss` like any other network of a run and kept by its content. Compare its
numbers within a study only.

Shape letters: B batch, C channels, H W space, D features, E early channels, K classes.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldmlab.data.fields import Field
from ldmlab.errors import ConfigError
from ldmlab.metrics.corruptions import luma_of
from ldmlab.metrics.features import Features, FeatureSet, hash_of
from ldmlab.ranges import Given, Items, Width

CHANGES = 5  # numbers that say how an image was changed (`training.changes`)
TURNS = "turns"  # quarter turns: what is learnt where there is no label
QUIET = 1e-4  # variance under which a flat map counts as flat: (1/100 of half the range)²
SILU_GAIN = 1.7881  # 1 / standard deviation of silu(x) for standard normal x
BRANCH = 0.2  # what a residual branch begins at


class ScaledConv(nn.Conv2d):
    """A convolution by weights of mean 0 and norm `gain` per output channel, whatever the image."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1):
        super().__init__(channels_in, channels_out, 3, stride, padding=1)
        self.gain = nn.Parameter(torch.ones(channels_out, 1, 1, 1))

    def forward(self, h_BCHW: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True)
        weight = self.gain * (self.weight - mean) * torch.rsqrt(variance * self.weight[0].numel() + 1e-6)
        return F.conv2d(h_BCHW, weight, self.bias, self.stride, self.padding)


def active(h_BCHW: Tensor) -> Tensor:
    """SiLU, of unit variance where its input has it."""
    return SILU_GAIN * F.silu(h_BCHW)


class Residual(nn.Module):
    """x + branch · conv(silu(conv(silu(x)))), same size."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1, self.conv2 = ScaledConv(width, width), ScaledConv(width, width)
        self.branch = nn.Parameter(torch.tensor(BRANCH))

    def forward(self, h_BCHW: Tensor) -> Tensor:
        return h_BCHW + self.branch * self.conv2(active(self.conv1(active(h_BCHW))))


SECOND_DIFFERENCES = (  # where sharpness is: the Laplacian, its product form, and along each axis
    ((0, -1, 0), (-1, 4, -1), (0, -1, 0)), ((1, -2, 1), (-2, 4, -2), (1, -2, 1)),
    ((0, 0, 0), (-2, 4, -2), (0, 0, 0)), ((0, -2, 0), (0, 4, 0), (0, -2, 0)),
)  # fmt: skip


class Early(nn.Module):
    """Two layers without padding; of each, means of SiLU and log standard deviations over space: [B, 4E].

    Half of the first layer begins at second differences of luma: from random weights 20 000 images of training do not find them.
    """

    def __init__(self, width: int, image_channels: int = 3):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(image_channels, width, 3), nn.Conv2d(width, width, 3, stride=2)
        with torch.no_grad():
            for i in range(width // 2):
                kernel_33 = torch.tensor(SECOND_DIFFERENCES[i % 4]) / 4
                self.conv1.weight[i] = luma_of(image_channels)[:, None, None] * kernel_33
                self.conv1.bias[i] = 0.0  # type: ignore[index]

    def forward(self, image_BCHW: Tensor) -> Tensor:
        found = []
        h_BCHW = self.conv1(image_BCHW)
        for layer in (None, self.conv2):
            h_BCHW = h_BCHW if layer is None else layer(F.silu(h_BCHW))
            variance_BE = h_BCHW.float().var(dim=(2, 3), correction=0)
            found += [F.silu(h_BCHW).float().mean(dim=(2, 3)), 0.5 * (variance_BE + QUIET).log()]
        return torch.cat(found, dim=1)


class Classifier(nn.Module):
    """4 x width features: width from the two early layers, 3 x width from the last of three halvings (mean over space).

    `forward` takes uint8 [B, 3, H, W] in 0..255, from 16 px a side, and gives standardised features (mean 0 and deviation 1
    over the training images, see `standardise`) and the logits of `label`, None where the data has no label. In training it
    takes float images in [-1, 1] and `changed_BCHW`, and gives the answers to be learnt: field → [B, values].

    learns      fields of the data beside `label`: class numbers, and vectors as numbers
    trained_on  shapes: the generated shapes at the run's resolution; data: the run's own data
    declared    the fields of that data (given by build)

    Raises ConfigError for a width that is no multiple of 8, a field that the data does not have or that is no label and no
    vector, and images that are too small.
    """

    min_size = 16
    resize_text = "none"

    def __init__(
        self,
        declared: Annotated[Sequence[Field], Given],
        width: Width = 32,
        learns: Annotated[list[str], Items(distinct=True)] = ["label"],  # noqa: B006 - read only
        trained_on: Literal["shapes", "data"] = "data",
        image_channels: Annotated[int, Given] = 3,
    ):
        super().__init__()
        self.image_channels = image_channels
        if width % 8:
            near = max(8, round(width / 8) * 8)
            raise ConfigError(
                f"eval.extractor.width must be a positive multiple of 8; got {width}. The nearest is {near}."
            )
        self.values = _learnt(learns, declared)
        self.name = "shapes" if trained_on == "shapes" else "classifier"
        self.classes_of_data = "label" in self.values
        self.feature_dim, self.logit_dim = 4 * width, self.values.get("label", 0)
        self.preprocessing = (
            f"classifier of {', '.join(self.values)} and of changes; x / 127.5 - 1; no resize; over space; standardised"
        )
        widths = [width, 2 * width, 3 * width, 3 * width]
        self.early = Early(width // 4, image_channels)
        self.stem = ScaledConv(image_channels, width)
        self.downs = nn.ModuleList(ScaledConv(widths[i], widths[i + 1], stride=2) for i in range(3))
        self.blocks = nn.ModuleList(Residual(after) for after in widths[1:])
        self.heads = nn.ModuleDict({name: nn.Linear(self.feature_dim, values) for name, values in self.values.items()})
        self.changes = nn.Linear(width, CHANGES)
        self.register_buffer("mean_D", torch.zeros(self.feature_dim))
        self.register_buffer("deviation_D", torch.ones(self.feature_dim))
        self.to(memory_format=torch.channels_last)

    def fingerprint(self) -> str:
        return hash_of(self, self.preprocessing)

    def standardise(self, mean_D: Tensor, deviation_D: Tensor) -> None:
        """Features are (raw - mean) / deviation from now on; a deviation of 0 (a feature that says nothing) counts as 1."""
        self.mean_D = mean_D.float().clone()
        self.deviation_D = torch.where(deviation_D > 0, deviation_D, torch.ones_like(deviation_D)).float()

    @torch.no_grad()
    def answers(self, features: FeatureSet) -> dict[str, np.ndarray]:
        """What it says of images from their (standardised) features: field → logits [N, K], or the numbers of a vector [N, D]."""
        feature_ND = torch.from_numpy(features.features).to(self.mean_D)
        raw_ND = feature_ND * self.deviation_D + self.mean_D
        return {name: head(raw_ND).float().cpu().numpy() for name, head in self.heads.items()}

    def feature_maps(self, image_BCHW: Tensor) -> list[Tensor]:
        """Maps at 1, 1/2, 1/4 and 1/8 of the side, for float images in [-1, 1]; differentiable in the image."""
        h_BCHW = self.stem(image_BCHW.contiguous(memory_format=torch.channels_last))
        maps = [h_BCHW]
        for down, block in zip(self.downs, self.blocks, strict=True):
            h_BCHW = block(down(active(h_BCHW)))
            maps.append(h_BCHW)
        return maps

    def raw(self, image_BCHW: Tensor) -> Tensor:
        """Features [B, D], float32, not standardised, for float images in [-1, 1]."""
        late_BD = active(self.feature_maps(image_BCHW)[-1]).float().mean(dim=(2, 3))
        return torch.cat([self.early(image_BCHW), late_BD], dim=1)

    def forward(self, image_BCHW: Tensor, changed_BCHW: Tensor | None = None) -> Features | dict[str, Tensor]:
        if image_BCHW.ndim != 4 or image_BCHW.shape[1] != self.image_channels:
            raise ValueError(f"{self.name} takes [B, {self.image_channels}, H, W]; got {tuple(image_BCHW.shape)}")
        if min(image_BCHW.shape[2:]) < self.min_size:
            raise ConfigError(
                f"eval.extractor: the classifier takes images of at least {self.min_size} pixels a side; "
                f"data.resolution={min(image_BCHW.shape[2:])} is smaller."
            )
        x_BCHW = image_BCHW.float() / 127.5 - 1 if image_BCHW.dtype == torch.uint8 else image_BCHW
        raw_BD = self.raw(x_BCHW)
        if changed_BCHW is not None:
            E4 = self.changes.in_features
            raw_BD = torch.cat(
                [raw_BD[:, :E4].detach(), raw_BD[:, E4:]], dim=1
            )  # labels must not move the early layers
            answers = {name: head(raw_BD) for name, head in self.heads.items()}
            return {**answers, "changes": self.changes(self.early(changed_BCHW))}
        logits_BK = self.heads["label"](raw_BD) if "label" in self.values else None
        return Features((raw_BD - self.mean_D) / self.deviation_D, logits_BK)


def _learnt(learns: Sequence[str], declared: Sequence[Field]) -> dict[str, int]:
    """Field → its number of values, or of numbers; quarter turns where the data has no label."""
    known = {field.name: field for field in declared}
    found: dict[str, int] = {}
    for name in learns:
        field = known.get(name)
        if field is None and name == "label":
            continue  # unlabelled data
        if field is None or field.kind not in ("label", "vector") or field.values is None:
            can = [f.name for f in declared if f.kind in ("label", "vector")]
            raise ConfigError(
                f"eval.extractor.learns: {name!r} is no label and no vector of this data; choose from {', '.join(can) or 'nothing'}."
            )
        found[name] = field.values
    return found if "label" in found else {TURNS: 4, **found}


def turned(image_BCHW: Tensor, turn_B: Tensor) -> Tensor:
    """Each image turned by so many quarters."""
    views = torch.stack([torch.rot90(image_BCHW, k, dims=(2, 3)) for k in range(4)])
    return views[turn_B, torch.arange(len(turn_B), device=turn_B.device)]
