"""Whether samples show the class map that they were drawn for: mIoU of a segmenter's answer with the map."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ldmlab.metrics.beside import Measure, TaskMetric, chw, common_sets, parts, size
from ldmlab.metrics.intervals import Score
from ldmlab.metrics.iou import Confusion
from ldmlab.metrics.metric import Inputs
from ldmlab.metrics.segmenter import load_segmenter

FIELD = "segmentation"


@dataclass(frozen=True)
class MeanIoU(TaskMetric):
    """mIoU over all pixels of all samples; beside it that of the null condition, of a map of background alone and of the real
    images, which is as far as the segmenter itself goes."""

    name: ClassVar[str] = "miou"
    label: ClassVar[str] = "mIoU"
    measures: ClassVar[tuple[Measure, ...]] = (Measure("", "mIoU", "higher"),)
    rows: ClassVar[dict[str, str]] = {
        "null": "null condition", "background": "background everywhere", "real": "real images",
    }  # fmt: skip
    of_samples: ClassVar[tuple[str, ...]] = ("pixels", "pairs", f"conditions:{FIELD}", "stage:segmenter")
    estimator: ClassVar[str] = "intersections and unions summed over images, mean over classes that occur"

    def score(self, inputs: Inputs, row: str) -> dict[str, Score]:
        assert inputs.conditions is not None
        net = inputs.once("segmenter", lambda: load_segmenter(inputs.stages["segmenter"], inputs.device))
        found = Confusion(net.classes)
        for rows in parts(size(inputs)):
            truth_BHW = inputs.conditions.batch(rows)[FIELD].long()
            if row == "background":
                said_BHW = torch.zeros_like(truth_BHW)
            else:
                said_BHW = net.classes_of(chw(common_sets(inputs, row)(rows), inputs.device)).cpu()
            found.update(said_BHW, truth_BHW)
        return {"": found.score(inputs.bootstrap, inputs.seed, "classes of a segmenter against the condition's")}
