"""The package's own metrics by name, with the settings of their yaml files: for code that composes no configuration."""

from collections.abc import Iterable

from ldmlab.metrics.boxes import Boxes
from ldmlab.metrics.caption import Caption
from ldmlab.metrics.clip_score import ClipScore
from ldmlab.metrics.depth import DepthCorrelation
from ldmlab.metrics.fid_infinity import FIDInfinity
from ldmlab.metrics.frechet import FID
from ldmlab.metrics.inception_score import InceptionScore
from ldmlab.metrics.inpainting import Inpainting
from ldmlab.metrics.kid import KID
from ldmlab.metrics.label_agreement import LabelAgreement
from ldmlab.metrics.metric import Metric, check_names
from ldmlab.metrics.nearest import Nearest
from ldmlab.metrics.precision_recall import Precision, Recall
from ldmlab.metrics.rate_distortion import RateDistortion
from ldmlab.metrics.semantic import MeanIoU
from ldmlab.metrics.superresolution import SuperResolution
from ldmlab.metrics.window_borders import WindowBorders

STANDARD: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        FID(), InceptionScore(), KID(), Precision(), Recall(), FIDInfinity(required=False), LabelAgreement(required=False),
    )
}  # fmt: skip


OF_A_RUN: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        RateDistortion(),
        MeanIoU(),
        DepthCorrelation(),
        SuperResolution(),
        Inpainting(),
        Caption(required=False),
        Boxes(required=False),
        ClipScore(),
        Nearest(),
        WindowBorders(),
    )
}
"""Those that read the result of a stage, which a run alone has."""


def standard(names: Iterable[str], option: str = "eval.metrics") -> list[Metric]:
    """The named metrics in the given order. Raises ConfigError naming `option` for an unknown or repeated one."""
    names = list(names)
    check_names(names, list(STANDARD), option)
    return [STANDARD[name] for name in names]
