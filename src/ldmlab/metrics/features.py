"""Feature extractors and one pass over images: what FID, IS, KID and precision-recall look at.

An extractor is a frozen `nn.Module` in eval mode: uint8 images in, `Features` out. It says its `name`, its widths, the
smallest image it takes, and a `fingerprint()`: a hash of weights and preprocessing that goes into every protocol card,
so that two numbers made with different networks can never be mistaken for comparable ones.

Shape letters: B batch, N images, C channels, H W space, D features, K classes.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from ldmlab.data.parcel import on_device
from ldmlab.errors import ConfigError, DataError, WeightsError
from ldmlab.ranges import File, Pixels

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"
IMAGENET_MEAN = [[[0.485]], [[0.456]], [[0.406]]]  # [C, 1, 1], for values in 0..1
IMAGENET_STD = [[[0.229]], [[0.224]], [[0.225]]]
INCEPTION_HASH = "6726825d"  # torch.hub's convention: the file name ends in the first digits of its sha256


class Features(NamedTuple):
    """What an extractor says about one batch, float32."""

    features_BD: Tensor
    logits_BK: Tensor | None


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """Features of N images on the CPU: `features` float32 [N, D], `logits` float32 [N, K] or None."""

    features: np.ndarray
    logits: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.features.ndim != 2:
            raise ValueError(f"features must be [N, D]; got shape {self.features.shape}")
        if self.logits is not None and len(self.logits) != len(self.features):
            raise ValueError(f"{len(self.features)} feature rows but {len(self.logits)} logit rows")

    def __len__(self) -> int:
        return len(self.features)

    def select(self, rows: slice | np.ndarray) -> "FeatureSet":
        """The given rows, in the given order."""
        return FeatureSet(self.features[rows], None if self.logits is None else self.logits[rows])

    @staticmethod
    def concatenate(parts: "list[FeatureSet]") -> "FeatureSet":
        """All rows of several sets, in order (batches of one pass, or the parts made by several ranks)."""
        logits = [part.logits for part in parts if part.logits is not None]
        if logits and len(logits) != len(parts):
            raise ValueError("some parts have logits and some have none")
        return FeatureSet(np.concatenate([part.features for part in parts]), np.concatenate(logits) if logits else None)


@runtime_checkable
class Extractor(Protocol):
    """What scoring needs of a network. `min_size` is the smallest image side it takes."""

    name: str
    feature_dim: int
    logit_dim: int
    min_size: int
    resize_text: str  # for the protocol card
    classes_of_data: bool  # whether logit k is class k of the data it scores

    def fingerprint(self) -> str: ...

    def __call__(self, image_BCHW: Tensor) -> Features: ...


def frozen(module: nn.Module) -> nn.Module:
    """The module itself, in eval mode and without gradients."""
    return module.requires_grad_(False).eval()


def hash_of(module: nn.Module, preprocessing: str) -> str:
    """sha256 hex over the preprocessing text and every tensor of the state dict (name, shape, type, bytes)."""
    digest = hashlib.sha256(preprocessing.encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"\x1f{name}\x1f{tuple(tensor.shape)}\x1f{tensor.dtype}\x1f".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_images(image_BCHW: Tensor, min_size: int, name: str) -> None:
    """Refuse what an extractor would answer with nonsense: wrong type, wrong channels, images that are too small."""
    if image_BCHW.dtype != torch.uint8 or image_BCHW.ndim != 4 or image_BCHW.shape[1] != 3:
        raise ValueError(f"{name} takes uint8 [B, 3, H, W]; got {image_BCHW.dtype} {tuple(image_BCHW.shape)}")
    if min(image_BCHW.shape[2:]) < min_size:
        raise ConfigError(
            f"eval.extractor: {name} takes images of at least {min_size} pixels a side; "
            f"data.resolution={min(image_BCHW.shape[2:])} is smaller."
        )


@torch.no_grad()
def extract(
    batches: Iterable[Tensor], extractor: nn.Module, device: torch.device | str, option: str = "eval.samples"
) -> FeatureSet:
    """Features of every image of `batches` (uint8 [B, 3, H, W], any batch sizes), in order, as float32 on the CPU.

    Raises DataError when there are no images (`option` names what decides their number) or a feature is not finite.
    """
    extractor = extractor.to(device)
    if extractor.training:
        raise ValueError(f"{type(extractor).__name__} is in training mode; features would depend on the batch")
    parts = []
    for image_BCHW in batches:
        features_BD, logits_BK = extractor(on_device(image_BCHW, device))
        parts.append(
            FeatureSet(
                features_BD.float().cpu().numpy(), None if logits_BK is None else logits_BK.float().cpu().numpy()
            )
        )
    if not parts:
        raise DataError(f"{option}: there is no image to extract features from.")
    found = FeatureSet.concatenate(parts)
    if not np.isfinite(found.features).all():
        bad = int(np.nonzero(~np.isfinite(found.features).all(axis=1))[0][0])
        raise DataError(f"image {bad} has features that are not finite (extractor {type(extractor).__name__}).")
    return found


def load_state(path: str | Path, option: str, what: str) -> dict[str, Tensor]:
    """A state dict from outside, read without executing code. WeightsError names `option` and the file."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise WeightsError(f"{option}={path}: no such file. It must be {what}.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise WeightsError(
            f"{option}={path}: not a torch state dict of plain tensors ({type(error).__name__})."
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{option}={path}: not a plain state dict of tensors. It must be {what}.")
    return state


def _inception_weights(weights: str | None) -> dict[str, Tensor]:
    what = f"torch-fidelity's {INCEPTION_FILE}"
    if weights is not None:
        return load_state(weights, "eval.extractor.weights", what)
    cached = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    if not cached.is_file():
        cached.parent.mkdir(parents=True, exist_ok=True)
        try:  # torch-fidelity itself would unpickle the download with code allowed and without checking its hash
            torch.hub.download_url_to_file(INCEPTION_URL, str(cached), hash_prefix=INCEPTION_HASH, progress=False)
        except (OSError, RuntimeError) as error:
            raise WeightsError(
                f"The InceptionV3 weights could not be downloaded ({error}). Put {INCEPTION_FILE} (from "
                f"{INCEPTION_URL}) into {cached.parent}, or give its path: "
                f"eval.extractor.weights=/path/to/{INCEPTION_FILE}. eval=shapes and eval=squeezenet need no "
                "download; compare their numbers with each other only."
            ) from error
    return load_state(cached, "eval.extractor.weights", what)


class Inception(nn.Module):
    """InceptionV3 of the original FID code, as ported by torch-fidelity 0.4: 2048 pool features, 1008 unbiased logits.

    Images of any size are resized to 299 x 299 with TensorFlow 1's bilinear rule, inside torch-fidelity's network.
    `weights`: path of the weights file; None: torch.hub's folder, or a download (sha256 prefix checked).
    Raises WeightsError when there is no such file and no network, saying which file to put where.
    Runs in channels_last, which is faster and equal to float rounding.
    """

    name = "inception"
    feature_dim = 2048
    logit_dim = 1008
    min_size = 16
    classes_of_data = False
    resize_text = "bilinear as in TensorFlow 1, to 299"
    preprocessing = "torch-fidelity inception-v3-compat; TensorFlow 1 bilinear to 299; (x - 128) / 128"

    def __init__(self, weights: File | None = None):
        super().__init__()
        state = _inception_weights(weights)
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        # torch-fidelity unpickles its file with code allowed: hand it the tensors that were read without
        file = BytesIO()
        torch.save(state, file)
        file.seek(0)
        try:
            net = FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], file)
        except RuntimeError as error:
            raise WeightsError(
                f"eval.extractor.weights={weights or INCEPTION_FILE}: does not fit torch-fidelity's InceptionV3 "
                f"({str(error).splitlines()[-1].strip()[:160]})."
            ) from error
        self.net: Any = net.to(memory_format=torch.channels_last)
        frozen(self)

    def train(self, mode: bool = True) -> "Inception":
        return super().train(False)  # never anything but eval

    def fingerprint(self) -> str:
        return hash_of(self.net, self.preprocessing)

    @torch.no_grad()
    def forward(self, image_BCHW: Tensor) -> Features:
        check_images(image_BCHW, self.min_size, self.name)
        return Features(*self.net(image_BCHW.contiguous(memory_format=torch.channels_last)))


class SqueezeNet(nn.Module):
    """SqueezeNet 1.1 trained on ImageNet, from a weights file: 512 features (mean over space), 1000 logits.

    `weights`: path of a state dict of torchvision's `squeezenet1_1`. `resize`: images are resized to this side
    (bilinear, antialias) before the usual ImageNet normalisation. Compare its distances with each other only.
    Raises WeightsError when the file is not given, not there, or does not fit.
    """

    mean_C11: Tensor
    std_C11: Tensor
    name = "squeezenet"
    feature_dim = 512
    logit_dim = 1000
    min_size = 16
    classes_of_data = False

    def __init__(self, weights: File | None = None, resize: Pixels = 224):
        super().__init__()
        if resize < 32:
            raise ConfigError(f"eval.extractor.resize must be at least 32; got {resize}.")
        what = "a state dict of torchvision's squeezenet1_1"
        if weights is None:
            raise WeightsError(f"eval.extractor.weights is not set: give the path of {what}.")
        state = load_state(weights, "eval.extractor.weights", what)
        from torchvision.models import squeezenet1_1

        net = squeezenet1_1(weights=None)
        try:
            net.load_state_dict(state)
        except RuntimeError as error:
            raise WeightsError(f"eval.extractor.weights={weights}: is not {what}.") from error
        self.net: Any = net.float().to(memory_format=torch.channels_last)
        self.register_buffer("mean_C11", torch.tensor(IMAGENET_MEAN), persistent=False)
        self.register_buffer("std_C11", torch.tensor(IMAGENET_STD), persistent=False)
        frozen(self)
        self.resize = resize
        self.resize_text = f"bilinear antialias, to {resize}"
        self.preprocessing = f"squeezenet1_1; {self.resize_text}; ImageNet mean and std; mean of features.12"

    def train(self, mode: bool = True) -> "SqueezeNet":
        return super().train(False)  # never anything but eval

    def fingerprint(self) -> str:
        return hash_of(self.net, self.preprocessing)

    @torch.no_grad()
    def forward(self, image_BCHW: Tensor) -> Features:
        check_images(image_BCHW, self.min_size, self.name)
        side = (self.resize, self.resize)
        x_BCHW = nn.functional.interpolate(image_BCHW.float() / 255, size=side, mode="bilinear", antialias=True)
        x_BCHW = (x_BCHW - self.mean_C11) / self.std_C11
        h_BCHW = self.net.features(x_BCHW.contiguous(memory_format=torch.channels_last))
        return Features(h_BCHW.mean(dim=(2, 3)), self.net.classifier(h_BCHW).flatten(1))
