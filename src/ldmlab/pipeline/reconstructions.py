"""What the first stage loses on val images, what its latent costs and what it looks like."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ldmlab import build
from ldmlab.data.batches import eight_bits, to_float, to_uint8
from ldmlab.data.parcel import on_device
from ldmlab.metrics.codecs import CODEC_PIXELS, codec_curves
from ldmlab.metrics.evaluate import Scores, evaluate
from ldmlab.metrics.extraction import Original, extract_all
from ldmlab.metrics.features import FeatureSet
from ldmlab.metrics.inception_score import SPLITS, is_score
from ldmlab.metrics.metric import Inputs
from ldmlab.metrics.reconstruction_pass import SHOWN, Pass, save_arrays
from ldmlab.metrics.standard import standard
from ldmlab.pipeline import linear_baseline
from ldmlab.pipeline.context import Context, frozen
from ldmlab.pipeline.data import DataStage
from ldmlab.pipeline.decoder import decoding, load_decoding
from ldmlab.pipeline.extractor import extractor_of, load_extractor
from ldmlab.pipeline.first_stage import training_images
from ldmlab.pipeline.sheets import error_sheet, spread
from ldmlab.pipeline.stage import Row, Stage
from ldmlab.store.files import write_json
from ldmlab.terminal import number


class ReconstructionsStage(Stage):
    """The scores of a first stage.

    scores.json   PSNR, SSIM, perceptual distance, rFID, R-IS, bits, latent moments; their protocol card
    facts.json    what kind of first stage it is: shapes, parameters, compression; images/s on this machine; PSNR of the linear
                  first stage of equal f and c, and what was gained over it
    per_image.npz PSNR, SSIM and perceptual distance of each image, with its index in the data
    latent.npz    histograms, correlation, components, spectra, PSNR against latent noise (`Pass.latent`)
    codecs.json   rate and PSNR of JPEG, WebP and rounded principal components on the same images (`metrics.codecs`)
    shown.npz     the first images and their reconstructions; reconstructions.png shows them with their errors
    """

    name: ClassVar[str] = "reconstructions"
    version: ClassVar[int] = 6
    due: ClassVar[str | None] = "autoencoder"

    @property
    def label(self) -> str:
        return self.plan.resolved.choices["ae"]

    def own(self) -> dict[str, Any]:
        return {"images": self.cfg.eval.reconstructions, "bootstrap": self.cfg.eval.bootstrap, "tile": self.cfg.ae.tile}

    def upstream(self) -> dict[str, Stage | str]:
        data = self.plan.stage(DataStage)
        return {**decoding(self.plan), "data": data, "extractor": extractor_of(self.plan)}

    @property
    def images(self) -> int:
        return min(self.cfg.eval.reconstructions, len(self.plan.resolved.val))

    def row(self) -> Row:
        costs, rfid = self.plan.resolved.costs, "" if self.plan.resolved.extractor is None else " rFID R-IS"
        return Row(f"{number(self.images)} val images · PSNR SSIM{rfid} bits", self.images, costs.encode + costs.decode)

    def work(self, ctx: Context, folder: Path) -> None:
        ae, extractor = load_decoding(self.plan, ctx), load_extractor(self.plan, ctx)
        n = self.images
        indices = spread(len(ctx.val), n)
        read, exact = Original(ctx.val, indices), Original(ctx.val, indices, exact=True)

        @torch.no_grad()
        def reconstructed(rows: list[int]) -> Tensor:
            return to_uint8(ae.decode(ae.encode(to_float(on_device(exact(rows), ctx.device)))))

        features = []
        if extractor is not None:
            features = [
                extract_all(
                    images, n, extractor, folder, ctx.cfg.eval.batch_size, ctx.device, ctx.ranks, name, f"val {name}",
                )
                for images, name in ((reconstructed, "reconstructed"), (read, "original"))
            ]  # fmt: skip
        if ctx.main:
            distance = build.evaluation_distance(ctx.cfg, extractor)
            perceptual = None if distance is None else frozen(distance, ctx.device)
            seen = Pass(ae, exact, n, ctx.cfg.eval.batch_size, ctx.device, perceptual)
            self._write(ctx, folder, seen, features, extractor, indices)
        ctx.barrier()

    def _write(
        self, ctx: Context, folder: Path, seen: Pass, features: list[FeatureSet], extractor: Any, indices: list[int]
    ) -> None:
        """All files of the stage; on the main process."""
        bootstrap, seed, n = ctx.cfg.eval.bootstrap, ctx.cfg.eval.seed, self.images
        distances, originals = Scores(), None
        if features:
            has_is = features[0].logits is not None and n >= SPLITS
            inputs = Inputs(bootstrap, seed, features[0], features[1], options=("eval.reconstructions",) * 2)
            distances = evaluate(standard(["fid", *(["is"] if has_is else [])]), inputs)
            if has_is and features[1].logits is not None:  # the R-IS of a first stage that loses nothing
                limit = is_score(features[1].logits, bootstrap, seed)
                originals = {"value": limit.value, "low": limit.low, "high": limit.high}
        scores = self._scores(seen, distances, extractor)
        comparison = self._linear_comparison(ctx, seen, scores["psnr"]["value"])
        trained, quantises = ctx.cfg.ae.fit is not None, seen.ae.regulariser.quantises
        below = linear_baseline.warnings(comparison, trained, seen.ae.f, seen.ae.c, quantises)
        for text in below:
            ctx.say(f" warning: {text}")
        write_json(folder / "scores.json", scores | {"warnings": [*scores["warnings"], *below]})
        budget = 0 if ctx.cfg.ae.fit is None else ctx.cfg.ae.fit.images
        facts = {"training_images": budget, "is_of_originals": originals, "shown": indices[:SHOWN]}
        write_json(folder / "facts.json", {**seen.facts(), **facts, **comparison._asdict()})
        shown = seen.shown()
        coded = eight_bits(seen.read(spread(n, max(1, CODEC_PIXELS // seen.resolution**2))))
        curves = codec_curves(coded.numpy(), training_images(ctx, linear_baseline.FIT_IMAGES))
        points = {codec: [point._asdict() for point in points] for codec, points in curves.items()}
        write_json(folder / "codecs.json", points)
        save_arrays(folder / "per_image.npz", {**seen.per_image(), "index": np.array(indices)})
        save_arrays(folder / "latent.npz", seen.latent())
        save_arrays(folder / "shown.npz", shown)
        error_sheet(folder / "reconstructions.png", shown["original"], shown["reconstruction"])

    def _linear_comparison(self, ctx: Context, seen: Pass, psnr: float) -> linear_baseline.LinearComparison:
        """The PSNR of the first stage beside that of principal components with the same f and c."""
        linear = linear_baseline.linear_psnr(
            seen.ae.f,
            seen.ae.c,
            lambda most: training_images(ctx, most),
            seen.read,
            seen.n,
            seen.batch_size,
            ctx.device,
            seen.gauge.bits,
        )
        return linear_baseline.compared(psnr, linear)

    def _scores(self, seen: Pass, distances: Scores, extractor: Any) -> dict[str, Any]:
        found = seen.scores(self.cfg.eval.bootstrap, self.cfg.eval.seed)
        found |= {f"r{name}": value.to_dict() for name, value in distances.values.items()}
        data, perceptual = self.plan.stage(DataStage), seen.gauge.perceptual
        found["card"] = {
            "images": self.images, "split": "val", "data": f"{data.label}-{data.address.id}",
            "resolution": self.plan.resolved.resolution, "latent": "posterior mean", "rounding": f"{seen.gauge.bits} bit, nearest",
            "extractor": None if extractor is None else extractor.name,
            "extractor_hash": None if extractor is None else extractor.fingerprint()[:12],
            "perceptual": None if perceptual is None else type(perceptual).__name__,
        }  # fmt: skip
        return found | {"warnings": [*seen.gauge.warnings(), *distances.warnings]}
