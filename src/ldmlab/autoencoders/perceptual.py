"""Distances between images in the feature space of a fixed network.

All of them are frozen and stay in evaluation mode whatever `train()` says. (In the official code the trainer switches
the whole loss to training mode, so the dropout inside LPIPS's heads is active while the autoencoder trains; here it
never is.)

Shape letters: B batch, C channels, H W space.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Protocol, cast
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldmlab.errors import WeightsError
from ldmlab.ranges import File, Given

VGG16_URL = "https://download.pytorch.org/models/vgg16-397923af.pth"
VGG16_TAPS = (3, 8, 15, 22, 29)  # relu1_2, 2_2, 3_3, 4_3, 5_3
SQUEEZENET_TAPS = (1, 4, 7, 9, 10, 11, 12)  # the taps of LPIPS's SqueezeNet variant
# LPIPS's ScalingLayer for images in [-1, 1]: the ImageNet mean and standard deviation in that range
LPIPS_SHIFT = (-0.030, -0.088, -0.188)
LPIPS_SCALE = (0.458, 0.448, 0.450)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class FeatureMaps(Protocol):
    """A network with feature maps to compare in."""

    def feature_maps(self, image_BCHW: Tensor) -> Sequence[Tensor]:
        """[B, 3, H, W] in [-1, 1] → maps [B, C, H, W], any number and sizes."""
        ...


class _Distance(nn.Module):
    """Squared difference of feature maps of unit length at each position, weighted per channel, mean over positions,
    summed over layers."""

    image_channels: int | None = 3  # that its network sees; None: those of the images it was trained on

    def feature_maps(self, image_BCHW: Tensor) -> Sequence[Tensor]:
        raise NotImplementedError

    def weigh(self, layer: int, squared_BCHW: Tensor) -> Tensor:
        """Squared differences → [B, 1, H, W]; here every channel counts the same."""
        return squared_BCHW.sum(1, keepdim=True)

    def forward(self, image_BCHW: Tensor, recon_BCHW: Tensor) -> Tensor:
        """Both [B, 3, H, W] in [-1, 1] → distance [B], with gradient to the second."""
        with torch.no_grad():
            target = [_unit(maps) for maps in self.feature_maps(image_BCHW)]
        layers = [
            self.weigh(n, (_unit(maps) - target[n]).square()).mean(dim=(1, 2, 3))
            for n, maps in enumerate(self.feature_maps(recon_BCHW))
        ]
        return torch.stack(layers).sum(0)

    def freeze(self) -> None:
        """Called at the end of a constructor: no gradients, evaluation mode for good."""
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> "_Distance":
        """Stays in evaluation mode."""
        return super().train(False)


def _unit(x_BCHW: Tensor) -> Tensor:
    return x_BCHW / (x_BCHW.square().sum(1, keepdim=True).sqrt() + 1e-10)


class Normalise(nn.Module):
    """(x − mean) / std per colour."""

    mean_C11: Tensor
    std_C11: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.register_buffer("mean_C11", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std_C11", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        return (image_BCHW - self.mean_C11) / self.std_C11


class LPIPS(_Distance):
    """LPIPS v0.1 with VGG16 (Zhang et al. 2018; official taming/modules/losses/lpips.py).

    weights   torchvision's `vgg16-397923af.pth`. null: the file in torch's cache, and where that is missing a download
              (528 MB). The linear heads come with torchmetrics.

    Images should be at least 32 px. Raises WeightsError, saying which file to put where, when there is none and no
    network.
    """

    def __init__(self, weights: File | None = None):
        super().__init__()
        from torchvision.models import vgg16

        backbone = vgg16(weights=None).features
        load(backbone, features_of(vgg16_state(weights)), "ae.loss.perceptual.weights", "torchvision's VGG16")
        self.features = backbone[: VGG16_TAPS[-1] + 1]
        torchmetrics = find_spec("torchmetrics")  # to import it takes 3 s
        assert torchmetrics is not None and torchmetrics.origin is not None
        heads = read(Path(torchmetrics.origin).parent / "functional/image/lpips_models/vgg.pth", "LPIPS's heads")
        self.heads = nn.ParameterList([heads[f"lin{n}.model.1.weight"] for n in range(len(VGG16_TAPS))])
        self.normalise = Normalise(LPIPS_SHIFT, LPIPS_SCALE)
        self.freeze()

    def feature_maps(self, image_BCHW: Tensor) -> Sequence[Tensor]:
        return tapped(self.features, self.normalise(image_BCHW), VGG16_TAPS)

    def weigh(self, layer: int, squared_BCHW: Tensor) -> Tensor:
        return F.conv2d(squared_BCHW, self.heads[layer].to(squared_BCHW.dtype))


class SqueezeNetDistance(_Distance):
    """A distance of LPIPS type with SqueezeNet 1.1 features and every channel weighted 1; not LPIPS, whose heads do not
    belong to these features.

    weights   a state dict of torchvision's squeezenet1_1

    The sum over seven layers lies in [0, 14], typically below 4. Images should be at least 32 px. Raises WeightsError.
    """

    def __init__(self, weights: File):
        super().__init__()
        from torchvision.models import squeezenet1_1

        self.features = squeezenet1_1(weights=None).features
        state = read(Path(weights), "SqueezeNet 1.1 weights", option="ae.loss.perceptual.weights")
        load(self.features, features_of(state), "ae.loss.perceptual.weights", "torchvision's SqueezeNet 1.1")
        self.normalise = Normalise(IMAGENET_MEAN, IMAGENET_STD)
        self.freeze()

    def feature_maps(self, image_BCHW: Tensor) -> Sequence[Tensor]:
        return tapped(self.features, self.normalise((image_BCHW + 1) / 2), SQUEEZENET_TAPS)


class ShapesDistance(_Distance):
    """The same with the feature maps of a given network, which is frozen: the classifier trained on data=shapes.

    classifier  a module with `feature_maps(image_BCHW in [-1, 1]) → maps` (passed by build, not an option)
    """

    image_channels = None  # the classifier's

    def __init__(self, classifier: Annotated[nn.Module, Given]):
        super().__init__()
        self.classifier = classifier
        self.freeze()

    def feature_maps(self, image_BCHW: Tensor) -> Sequence[Tensor]:
        classifier = cast(FeatureMaps, self.classifier)
        return classifier.feature_maps(image_BCHW)


def tapped(layers: nn.Sequential, x_BCHW: Tensor, taps: Sequence[int]) -> list[Tensor]:
    """Outputs of the numbered layers."""
    maps = []
    for n, layer in enumerate(layers):
        x_BCHW = layer(x_BCHW)
        if n in taps:
            maps.append(x_BCHW)
    return maps


def vgg16_state(weights: str | None) -> dict[str, Tensor]:
    """VGG16's state dict from a given file, torch's cache, or a download."""
    if weights is not None:
        return read(Path(weights), "VGG16 weights", option="ae.loss.perceptual.weights")
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(VGG16_URL).name
    if not cached.is_file():
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(VGG16_URL, str(cached), hash_prefix="397923af")
        except (URLError, OSError, RuntimeError) as error:
            raise WeightsError(
                f"LPIPS needs the VGG16 weights, and {VGG16_URL} could not be downloaded ({error}). "
                f"Put that file at {cached}, or name it: ae.loss.perceptual.weights=<file>; "
                "or take another distance: ae/loss/perceptual=squeezenet, shapes or none."
            ) from error
    return read(cached, "VGG16 weights")


def read(path: Path, what: str, option: str | None = None) -> dict[str, Tensor]:
    """A state dict from a file, without executing code in it. Raises WeightsError."""
    name = f"{option}={path}" if option else str(path)
    if not path.is_file():
        raise WeightsError(f"{name}: no such file ({what}).")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise whatever the zip reader or the unpickler met
        raise WeightsError(f"{name}: cannot be read as {what}: {str(error).splitlines()[0]}") from error
    if not isinstance(state, dict):
        raise WeightsError(f"{name}: holds a {type(state).__name__}, not a state dict ({what}).")
    return state


def features_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The convolutional part of a torchvision state dict, without the prefix `features.`."""
    return {k.removeprefix("features."): v.float() for k, v in state.items() if k.startswith("features.")}


def load(module: nn.Module, state: dict[str, Tensor], option: str, what: str) -> None:
    """Strict loading. Raises WeightsError with the first line of what differs."""
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:300]
        raise WeightsError(f"{option}: the file is not a state dict of {what}: {detail}") from error
