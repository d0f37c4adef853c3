"""The denoiser's learning rate from a small search, `tune=lr`: a short run at each of a few rates, judged by validation loss.

The best rate moves with a network's width, so one rate for all cells of a study would favour the width that it suits. The judge is
the denoising loss of val images: the same images, times and noise for every rate, averaged weights. FID of so short a run says
mostly how far it got, and its noise between seeds is larger than a factor of three in the rate.
"""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from omegaconf import DictConfig

from ldmlab import build
from ldmlab.config.compose import with_values
from ldmlab.data.batches import Batches
from ldmlab.errors import ConfigError, TrainingError
from ldmlab.pipeline.context import Context
from ldmlab.pipeline.first_stage import FirstStage
from ldmlab.pipeline.latents import LatentsStage, learnt_from, load_learnt_from
from ldmlab.pipeline.stage import Row, Stage, conditioning, deciding, trained
from ldmlab.pipeline.tokenizer import tokenizer_of, trained_tokenizer
from ldmlab.randomness import Draws
from ldmlab.store.checkpoint import load_tensors
from ldmlab.store.files import read_json, write_json
from ldmlab.terminal import number
from ldmlab.training.diffusion_loss import DiffusionLoss
from ldmlab.training.loop import total_steps

if TYPE_CHECKING:
    from ldmlab.pipeline.plan import Plan

PASSES = 4  # rounds of tune.val_images, each with times and noise of its own
GROUP = 32  # images of one mean; differences between rates are taken group by group


class LearningRateStage(Stage):
    """learning_rate.json: the rates, their losses, the differences from the best with standard errors, and the chosen rate;
    report.json: the same for the page; runs/<rate>/: log and losses of each short run, without its weights.
    """

    name: ClassVar[str] = "learning_rate"
    version: ClassVar[int] = 2

    @classmethod
    def of(cls, plan: "Plan") -> list["LearningRateStage"]:  # type: ignore[override]
        cfg = plan.resolved.cfg
        return [plan.stage(cls)] if cfg.tune is not None and cfg.ldm.fit is not None else []

    @property
    def label(self) -> str:
        choices = self.plan.resolved.choices
        return f"{choices['ldm']}-{choices['ae']}"

    @property
    def trains(self) -> bool:
        return True

    @property
    def rates(self) -> list[float]:
        """Rising, rounded to 3 digits."""
        return sorted(float(f"{self.cfg.ldm.fit.lr * factor:.3g}") for factor in self.cfg.tune.factors)

    def fit(self, rate: float) -> DictConfig:
        """`ldm.fit` of a short run."""
        fit, share = self.cfg.ldm.fit, self.cfg.tune.share
        lengths = {f"ldm.fit.{name}": round(share * fit[name]) for name in ("warmup", "cooldown")}
        length = max(1, round(share * fit.images))
        values = {"ldm.fit.lr": rate, "ldm.fit.images": length, "ldm.fit.snapshots": [], **lengths}
        return with_values(self.cfg, values).ldm.fit

    def own(self) -> dict[str, Any]:
        """Of `ldm`: the network and the fit of a short run; the run's seed is not part of it."""
        fit, cond = trained(self.fit(self.rates[0])), conditioning(self.cfg, self.plan.resolved.conditioner)
        fit.pop("lr")
        tile = {} if LatentsStage.of(self.plan) else {"tile": self.cfg.ae.tile}
        return {
            "network": deciding(self.cfg.ldm.network), "fit": fit, "cond": cond, "objective": self.cfg.objective,
            "rates": self.rates, "val_images": self.cfg.tune.val_images, "seed": self.cfg.tune.seed, **tile,
        }  # fmt: skip

    def upstream(self) -> dict[str, Stage | str]:
        return learnt_from(self.plan) | tokenizer_of(self.plan)

    def check(self) -> None:
        cfg = self.cfg
        others = {"seed": cfg.seed, **{f"{name}.seed": cfg[name].seed for name in ("ae", "ldm", "eval")}}
        if same := [path for path, seed in others.items() if seed == cfg.tune.seed]:
            raise ConfigError(
                f"tune.seed={cfg.tune.seed} is also {same[0]}: a rate must not be chosen on the run that it serves. Set another."
            )

    def row(self) -> Row:
        fit, costs = self.fit(self.rates[0]), self.plan.resolved.costs
        images = total_steps(fit) * fit.batch_size
        encode = 0.0 if LatentsStage.of(self.plan) else costs.encode
        rates = " ".join(f"{rate:g}" for rate in self.rates)
        return Row(f"of {rates} · {number(images)} img each", len(self.rates) * images, costs.training + encode)

    def work(self, ctx: Context, folder: Path) -> float:
        seconds = sum(self._try(ctx, folder / "runs" / f"{rate:g}", rate) for rate in self.rates)
        if ctx.main:
            found = judged({rate: read_json(folder / "runs" / f"{rate:g}" / "losses.json") for rate in self.rates})
            write_json(folder / "learning_rate.json", found)
            write_json(folder / "report.json", section(found))
            for text in found["notes"]:
                ctx.say(f" note: {text}")
            ctx.say(f" learning_rate: {found['rate']:g} of {' '.join(f'{rate:g}' for rate in self.rates)}")
        ctx.barrier()
        return seconds

    def load(self, ctx: Context) -> float:
        """The chosen rate."""
        self.make(ctx)
        return float(self.result()["rate"])

    def result(self) -> dict[str, Any]:
        """What the finished stage found (`judged`)."""
        found: dict[str, Any] = read_json(self.plan.store.folder(self.address) / "learning_rate.json")
        return found

    def _try(self, ctx: Context, folder: Path, rate: float) -> float:
        """One short run, resumed where it was interrupted; leaves its losses. Returns its seconds."""
        if ctx.main_decides((folder / "losses.json").exists()):
            return float(read_json(folder / "losses.json")["seconds"])
        folder.mkdir(parents=True, exist_ok=True)
        fit, seed = self.fit(rate), self.cfg.tune.seed
        ae = self.plan.stage(FirstStage).load(ctx)
        model = build.denoiser(
            with_values(ctx.cfg, {"ldm.seed": seed}), ae, ctx.data, tokenizer=trained_tokenizer(self.plan, ctx)
        )
        objective = self.plan.resolved.objective
        loss = DiffusionLoss(model, ae, objective, Draws(seed), build.drop(ctx.cfg), fit.batch_size)
        address = replace(self.address, options={**self.address.options, "rate": rate})
        found: dict[str, Any] = {"losses": None, "why": None, "seconds": 0.0}
        try:
            done = ctx.train(address, folder, loss, load_learnt_from(self.plan, ctx), fit, seed=seed)
            found["seconds"] = done.seconds
            if ctx.main:
                kept = "ema" if fit.ema is not None else "weights"
                model.load_state_dict(load_tensors(folder / f"{kept}.safetensors"))
                found["losses"] = self._losses(ctx, DiffusionLoss(model, ae, objective, Draws(seed), 0.0, GROUP))
        except TrainingError as error:  # it diverged; the loop has looked at the losses of all ranks
            found["why"] = str(error)
        if ctx.main:
            write_json(folder / "losses.json", found)
            for file in folder.glob("*.safetensors"):
                file.unlink()
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        ctx.barrier()
        return float(found["seconds"])

    @torch.no_grad()
    def _losses(self, ctx: Context, probe: DiffusionLoss) -> list[float]:
        """Mean loss of each group of val images; images, times and noise depend on the seed and the place alone."""
        n = min(self.cfg.tune.val_images, len(ctx.val))
        size = next(size for size in range(min(GROUP, n), 0, -1) if n % size == 0)
        probe.modules["denoiser"].eval()
        held = Batches(ctx.val, n, size, self.cfg.tune.seed, ctx.device)
        batches = [micro for turn in range(PASSES) for micro in held.step(turn * n)]
        return [float(probe.loss(micro, "denoiser", 0)[1]["loss"]) for micro in batches]


def judged(runs: dict[float, dict[str, Any]]) -> dict[str, Any]:
    """The rate of the lowest mean loss among rate → {losses: [groups] or None, why}; for each, loss and difference from the best.

    standard_error: of the difference, over groups of the same images, times and noise; it does not contain another seed's run.
    Raises TrainingError when no run has a finite loss.
    """
    losses = {rate: np.array(run["losses"]) for rate, run in runs.items() if run["losses"] is not None}
    losses = {rate: values for rate, values in losses.items() if np.isfinite(values).all()}
    if not losses:
        raise TrainingError(
            f"tune=lr: no rate of {', '.join(f'{r:g}' for r in runs)} gave a finite loss. Set a smaller ldm.fit.lr."
        )
    best = min(losses, key=lambda rate: (losses[rate].mean(), rate))
    rows, notes = [], []
    for rate, run in runs.items():
        if rate not in losses:
            rows.append({"rate": rate, "loss": None, "difference": None, "standard_error": None, "why": run["why"]})
            continue
        apart = losses[rate] - losses[best]
        error = float(apart.std(ddof=1) / np.sqrt(len(apart))) if len(apart) > 1 else None
        rows.append({
            "rate": rate, "loss": float(losses[rate].mean()), "difference": float(apart.mean()), "standard_error": error, "why": None,
        })  # fmt: skip
        if rate != best and error is not None and apart.mean() < 2 * error:
            notes.append(f"learning rate {rate:g} cannot be told from {best:g} by these images")
    if best in (min(runs), max(runs)) and len(runs) > 1:
        end = "smallest" if best == min(runs) else "largest"
        notes.append(
            f"learning rate {best:g} is the {end} that was tried; the best may lie beyond it (ldm.fit.lr={best:g} tries more)"
        )
    return {"rate": best, "rates": rows, "notes": notes}


def section(found: dict[str, Any]) -> dict[str, Any]:
    """What the page shows of `judged`."""
    rows: list[list[str | None]] = []
    for row in found["rates"]:
        numbers = [None if row[key] is None else f"{row[key]:.4g}" for key in ("loss", "difference", "standard_error")]
        rows.append([f"{row['rate']:g}{' (chosen)' if row['rate'] == found['rate'] else ''}", *numbers])
    text = "Short runs with a seed of their own, judged by the loss of val images at the same times and noise, averaged weights. "
    text += "; ".join(found["notes"])
    columns = ["learning rate", "val loss", "over the best", "standard error of the difference"]
    return {"title": "Learning rate", "text": text.rstrip(), "table": {"columns": columns, "rows": rows}}
