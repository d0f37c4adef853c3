"""Dose and response: real images changed on purpose and scored like samples, beside the same images unchanged.

python src/train.py stage=calibration until=autoencoder ae=identity data=shapes eval=shapes
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ldmlab.autoencoders.linear_path import LinearPath
from ldmlab.data.batches import to_float, to_uint8
from ldmlab.errors import ConfigError
from ldmlab.metrics import calibration
from ldmlab.metrics.calibration import EVERY, LINEAR, MISSING, REQUIRED, Response
from ldmlab.metrics.corruptions import CORRUPTIONS, Corrupted, without_classes
from ldmlab.metrics.evaluate import evaluate
from ldmlab.metrics.extraction import Original, extract_all
from ldmlab.metrics.intervals import Score
from ldmlab.metrics.metric import Inputs, Read
from ldmlab.pipeline.context import Context
from ldmlab.pipeline.data import DataStage
from ldmlab.pipeline.extractor import extractor_of, load_extractor
from ldmlab.pipeline.first_stage import training_images
from ldmlab.pipeline.plan import Plan
from ldmlab.pipeline.reference import ReferenceStage
from ldmlab.pipeline.sheets import save_sheet, spread
from ldmlab.pipeline.stage import Row, Stage
from ldmlab.ranges import Fraction, Given, Items, Range
from ldmlab.store.files import write_json
from ldmlab.terminal import number

PATCH = 8  # side of the patches whose components are kept
LINEAR_IMAGES = 10_000  # training images behind them, at most
Component = Annotated[int, Range(at_least=1, at_most=3 * PATCH**2)]
PICTURED = 8  # images in the sheet of a corruption


class Calibration(Stage):
    """calibration.json: every score at every dose, with replicates; report.json: the table of answers, for the page;
    <corruption>.png: the first images, unchanged and at each dose.

    images      of val, changed and scored; the reference is the run's own (eval.reference)
    missing     shares of the classes that are left out, for data with labels
    components  of 8×8 patches that are kept, falling
    """

    name: ClassVar[str] = "calibration"
    due: ClassVar[str | None] = "autoencoder"

    def __init__(
        self,
        plan: Annotated[Plan, Given],
        images: Annotated[int, Range(at_least=20, at_most=1_000_000)] = 1000,
        missing: Annotated[list[Fraction], Items(distinct=True)] | None = None,
        components: Annotated[list[Component], Items(at_least=1, distinct=True)] | None = None,
    ):
        super().__init__(plan)
        self.images = images
        self.missing = [0.1, 0.3, 0.5] if missing is None else sorted(missing)
        self.components = [48, 24, 12, 6, 3] if components is None else sorted(components, reverse=True)

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
            raise ConfigError("stage=calibration needs an extractor: set eval=shapes, squeezenet or inception.")
        val = len(self.plan.resolved.val)
        if self.images > val:
            raise ConfigError(
                f"stage.calibration.images={self.images}: val has {val} images. Set stage.calibration.images={val}, or more "
                "data.val_images."
            )
        if not self._metrics():
            raise ConfigError(
                "stage=calibration: no metric of eval.metrics takes real images alone. Add fid to eval.metrics."
            )

    def row(self) -> Row:
        sets = 1 + sum(len(kind.doses) for kind in CORRUPTIONS.values()) + len(self.missing) + len(self.components)
        return Row(f"{sets} sets of {number(self.images)} val images · {len(EVERY)} corruptions", sets * self.images)

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
                class_names=classes, classes_of_data=extractor.classes_of_data,
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
            write_json(folder / "calibration.json", self._record(responses, extractor))
            write_json(folder / "report.json", self._section(responses, extractor))
        ctx.barrier()

    def _sets(self, ctx: Context, real: Original) -> dict[str, list[tuple[float, Read]]]:
        """Corruption → (dose, images) in growing doses."""
        n = self.images
        found: dict[str, list[tuple[float, Read]]] = {
            name: [(dose, Corrupted(real, n, name, dose)) for dose in kind.doses] for name, kind in CORRUPTIONS.items()
        }
        labels = ctx.val.labels() if ctx.val.class_names else None
        if labels is not None and len(np.unique(labels)) > 1:
            found[MISSING] = [(share, self._without(ctx, np.asarray(labels), share)) for share in self.missing]
        if ctx.val.resolution % PATCH == 0:
            found[LINEAR] = [(float(c), _linear(ctx, real, c)) for c in self.components]
        return found

    def _without(self, ctx: Context, labels: np.ndarray, share: float) -> Read:
        """As many images of the classes that are left; spread over them, some twice where they are too few."""
        left = without_classes(labels, share)
        rows = left[np.linspace(0, len(left) - 1, self.images).round().astype(int)]
        return Original(ctx.val, rows.tolist())

    def _record(self, responses: list[Response], extractor: Any) -> dict[str, Any]:
        return {
            "extractor": extractor.name, "extractor_hash": extractor.fingerprint(), "images": self.images,
            "reference": self.plan.stage(ReferenceStage).address.id,
            "responses": [
                {
                    "metric": r.metric, "corruption": r.corruption, "doses": list(r.doses), "required": r.required,
                    "verdict": r.verdict, "told_from": r.told, "none": r.none.to_dict(),
                    "scores": [score.to_dict() for score in r.scores],
                }
                for r in responses
            ],
        }  # fmt: skip

    def _section(self, responses: list[Response], extractor: Any) -> dict[str, Any]:
        """What the page shows: a row for each metric and corruption."""
        rows = []
        for r in sorted(responses, key=lambda r: list(REQUIRED).index(r.metric) if r.metric in REQUIRED else 99):
            values = " · ".join(f"{dose:g}: {score.value:.4g}" for dose, score in zip(r.doses, r.scores, strict=True))
            told = "–" if r.told is None else f"{r.told:g}"
            must = "must answer" if r.required else "need not"
            verdict = f"{r.verdict}{' – required' if r.failed else ''}"
            rows.append([r.metric, r.corruption, must, verdict, told, f"{r.none.value:.4g}", values])
        failed = [f"{r.metric} to {r.corruption}" for r in responses if r.failed]
        judged = (
            f"Required answers that are missing: {', '.join(failed)}." if failed else "Every required answer is there."
        )
        return {
            "title": "Calibration: what each metric answers to",
            "text": f"{number(self.images)} val images, {extractor.name} features. Answers: the score is worse at every larger dose "
            f"and told from none (95 %, paired over images) at the largest; partly: told, but not worse with every dose. {judged}",
            "table": {
                "columns": ["metric", "corruption", "in advance", "verdict", "told from dose", "none", "score at each dose"],
                "rows": rows,
            },
            "pictures": [f"{name}.png" for name in dict.fromkeys(r.corruption for r in responses)],
        }  # fmt: skip


def _linear(ctx: Context, real: Read, components: int) -> Callable[[list[int]], Tensor]:
    """Images from so many principal components of 8×8 patches of the training images."""
    linear = LinearPath(PATCH, components)

    def batches() -> Iterator[Tensor]:
        for image_BCHW in training_images(ctx, LINEAR_IMAGES):
            yield image_BCHW.cpu()

    linear.fit(batches())

    @torch.no_grad()
    def read(rows: list[int]) -> Tensor:
        image_BCHW = to_float(real(rows))
        return to_uint8(F.pixel_shuffle(linear.decode(linear.encode(image_BCHW)), PATCH))

    return read
