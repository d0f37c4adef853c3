"""Dose and response: real images changed on purpose and scored like samples, beside the same images unchanged:

    python src/train.py stage=calibration until=autoencoder ae=identity data=shapes eval=shapes

What must answer what, and what became of it, is in `metrics.calibration`.
"""

import functools
from pathlib import Path
from typing import Annotated, Any, ClassVar, cast

import numpy as np
from torch import Tensor

from ldmlab.autoencoders.linear_path import images_of, patch_moments, patches, principal_components
from ldmlab.data.batches import to_float, to_uint8
from ldmlab.errors import ConfigError
from ldmlab.metrics import calibration
from ldmlab.metrics.calibration import LINEAR, MISSING, Response
from ldmlab.metrics.corruptions import CORRUPTIONS, Corrupted, without_classes
from ldmlab.metrics.evaluate import evaluate
from ldmlab.metrics.extraction import Original, extract_all
from ldmlab.metrics.features import Extractor
from ldmlab.metrics.intervals import Score
from ldmlab.metrics.metric import Inputs, Read, check_counts
from ldmlab.pipeline.context import Context
from ldmlab.pipeline.data import DataStage
from ldmlab.pipeline.extractor import extractor_of, load_extractor
from ldmlab.pipeline.first_stage import training_images
from ldmlab.pipeline.linear_baseline import FIT_IMAGES
from ldmlab.pipeline.plan import Plan
from ldmlab.pipeline.reference import ReferenceStage
from ldmlab.pipeline.sheets import save_sheet, spread
from ldmlab.pipeline.stage import Row, Stage
from ldmlab.ranges import Given, Items, Range
from ldmlab.store.files import write_json
from ldmlab.terminal import number

PATCH = 8  # side of the patches whose components are kept
FEWEST = 20  # images
OPTIONS = ("stage.calibration.images", "eval.reference.images")  # for messages about too few
Share = Annotated[float, Range(above=0, below=1)]
Component = Annotated[int, Range(at_least=1, at_most=3 * PATCH**2)]
PICTURED = 8  # images in the sheet of a corruption


class Calibration(Stage):
    """calibration.json: every score at every dose, with replicates; report.json: the table of answers, for the page;
    <corruption>.png: the first images, unchanged and at each dose.

    images      of val, changed and scored; the reference is the run's own (eval.reference)
    missing     shares of the classes that are left out, in each case with as many different images as without; null: of 10, 30
                and 50 % those that the data's classes and images allow; []: none
    components  of 8×8 patches that are kept, falling; []: none
    """

    name: ClassVar[str] = "calibration"
    version: ClassVar[int] = 2
    due: ClassVar[str | None] = "autoencoder"

    def __init__(
        self,
        plan: Annotated[Plan, Given],
        images: Annotated[int, Range(at_least=FEWEST, at_most=1_000_000)] = 1000,
        missing: Annotated[list[Share], Items(distinct=True)] | None = None,
        components: Annotated[list[Component], Items(distinct=True)] | None = None,
    ):
        super().__init__(plan)
        self.images, self._asked = images, missing
        self.components = [48, 24, 12, 6, 3] if components is None else sorted(components, reverse=True)
        if plan.resolved.resolution % PATCH and components is None:
            self.components = []  # 8×8 patches do not fit

    @functools.cached_property
    def missing(self) -> list[float]:
        """Shares of the classes to leave out."""
        if self._asked is not None:
            return sorted(self._asked)
        return [share for share in (0.1, 0.3, 0.5) if self._fault(share) is None]

    def _fault(self, share: float) -> str | None:
        """Why so many classes cannot be left out."""
        val = self.plan.resolved.val
        if len(val.class_names) < 2:
            return "the data has no two classes"
        labels = np.asarray(val.labels())
        classes = len(np.unique(labels))
        if not 0 < round(share * classes) < classes:
            return f"of {classes} classes it leaves out none or all; the nearest share that can be is {1 / classes:g}"
        left = len(without_classes(labels, share))
        if left < self.images:
            return f"it leaves {left} of the val images, fewer than stage.calibration.images={self.images}"
        return None

    def own(self) -> dict[str, Any]:
        metrics = {metric.name: metric.settings() for metric in self._metrics()}
        doses = {name: list(kind.doses) for name, kind in CORRUPTIONS.items()}
        return {
            "images": self.images, "missing": self.missing, "components": self.components, "metrics": metrics, "doses": doses,
            "bootstrap": self.cfg.eval.bootstrap, "seed": self.cfg.eval.seed,
        }  # fmt: skip

    def upstream(self) -> dict[str, Stage | str]:
        data, reference = self.plan.stage(DataStage), self.plan.stage(ReferenceStage)
        return {"data": data, "reference": reference, "extractor": extractor_of(self.plan)}

    def check(self) -> None:
        if self.cfg.eval.extractor is None:
            raise ConfigError(
                "stage=calibration needs an extractor: set eval=shapes, classifier, squeezenet or inception."
            )
        val = len(self.plan.resolved.val)
        if self.images > val:
            fewer = f"Set stage.calibration.images={val}, or take" if val >= FEWEST else "Take"
            raise ConfigError(f"stage.calibration.images={self.images}: val has {val} images. {fewer} more val images.")
        if self.cfg.eval.reference.split == "val":
            raise ConfigError(
                "stage=calibration changes val images, and eval.reference.split=val compares them with themselves. Set "
                "eval.reference.split=train."
            )
        for share in self._asked or []:
            if (wrong := self._fault(share)) is not None:
                raise ConfigError(
                    f"stage.calibration.missing={share:g}: {wrong}. Set another share, fewer stage.calibration.images, or []."
                )
        if self.components and self.plan.resolved.resolution % PATCH:
            raise ConfigError(
                f"stage.calibration.components needs 8x8 patches, and data.resolution={self.plan.resolved.resolution} is no "
                "multiple of 8. Set stage.calibration.components=[]."
            )
        if not self._metrics():
            raise ConfigError(
                "stage=calibration: no metric of eval.metrics takes real images alone. Add fid to eval.metrics."
            )
        reference = self.cfg.eval.reference.images or len(self.plan.resolved.data)
        width = cast(Extractor, self.plan.resolved.extractor).feature_dim
        check_counts(self._metrics(), self.images, reference, self.cfg.eval.bootstrap, width, OPTIONS)

    def row(self) -> Row:
        sets = 1 + sum(len(kind.doses) for kind in CORRUPTIONS.values()) + len(self.missing) + len(self.components)
        kinds = len(CORRUPTIONS) + bool(self.missing) + bool(self.components)
        return Row(f"{sets} sets of {number(self.images)} val images · {kinds} corruptions", sets * self.images)

    def _metrics(self) -> list[Any]:
        return calibration.able(self.plan.resolved.metrics)

    def work(self, ctx: Context, folder: Path) -> None:
        real = Original(ctx.val, spread(len(ctx.val), self.images))
        extractor, reference = load_extractor(self.plan, ctx), self.plan.stage(ReferenceStage).load(ctx)
        classes = tuple(ctx.data.class_names)

        def scored(read: Read, name: str, title: str) -> dict[str, Score]:
            """Empty on all ranks but the main one."""
            size = ctx.cfg.eval.batch_size
            found = extract_all(read, self.images, extractor, folder, size, ctx.device, ctx.ranks, name, title)
            ctx.barrier()
            if not ctx.main:
                return {}
            (folder / f"{name}.npz").unlink()
            inputs = Inputs(
                ctx.cfg.eval.bootstrap, ctx.cfg.eval.seed, found, reference, read_samples=read,
                class_names=classes, classes_of_data=extractor.classes_of_data, options=OPTIONS,
            )  # fmt: skip
            return evaluate(self._metrics(), inputs).values

        none = scored(real, "none", "unchanged")
        responses: list[Response] = []
        for corruption, sets in self._sets(ctx, real).items():
            found = [scored(read, f"{corruption}-{n}", f"{corruption} {dose:g}") for n, (dose, read) in enumerate(sets)]
            if ctx.main:
                shown: list[Read] = [real, *(read for _, read in sets)]
                sheet = np.concatenate([read(list(range(PICTURED))).numpy() for read in shown])
                save_sheet(folder / f"{corruption}.png", sheet, PICTURED)
            doses = tuple(dose for dose, _ in sets)
            for metric in self._metrics():
                if metric.name in none and all(metric.name in scores for scores in found):
                    each = tuple(scores[metric.name] for scores in found)
                    responses.append(Response(metric.name, corruption, doses, each, none[metric.name], metric.better))
        if ctx.main:
            left = calibration.not_measured(self._metrics(), responses)
            by = {
                "extractor": extractor.name, "extractor_hash": extractor.fingerprint(), "images": self.images,
                "reference": self.plan.stage(ReferenceStage).address.id,
            }  # fmt: skip
            records = [response.to_dict() for response in responses]
            write_json(folder / "calibration.json", {**by, "responses": records, "not_measured": left})
            over = f"{number(self.images)} val images, {extractor.name} features"
            write_json(folder / "report.json", calibration.section(responses, left, over))
            ctx.say(f" calibration: {calibration.verdict(responses, left)} The table: python src/report.py")
        ctx.barrier()

    def _sets(self, ctx: Context, real: Original) -> dict[str, list[tuple[float, Read]]]:
        """Corruption → (dose, images) in growing doses."""
        n = self.images
        found: dict[str, list[tuple[float, Read]]] = {
            name: [(dose, Corrupted(real, n, name, dose)) for dose in kind.doses] for name, kind in CORRUPTIONS.items()
        }
        if self.missing:
            labels = np.asarray(ctx.val.labels())
            found[MISSING] = [(share, self._without(ctx, labels, share)) for share in self.missing]
        if self.components:
            moments = patch_moments(PATCH, training_images(ctx, FIT_IMAGES))
            basis_PP = principal_components(moments.covariance())[1].cpu()
            found[LINEAR] = [(float(c), _linear(real, moments.mean().cpu(), basis_PP[:c])) for c in self.components]
        return found

    def _without(self, ctx: Context, labels: np.ndarray, share: float) -> Read:
        """As many different images of the classes that are left, spread over them."""
        left = without_classes(labels, share)
        rows = left[np.linspace(0, len(left) - 1, self.images).round().astype(int)]
        return Original(ctx.val, rows.tolist())


def _linear(real: Read, mean_P: Tensor, basis_CP: Tensor) -> Read:
    """Images from the given principal components of their 8×8 patches."""

    def read(rows: list[int]) -> Tensor:
        image_BCHW = to_float(real(rows))
        patch_MP = (patches(image_BCHW, PATCH).double() - mean_P) @ basis_CP.T @ basis_CP + mean_P
        return to_uint8(images_of(patch_MP, image_BCHW.shape, PATCH).float())

    return read
