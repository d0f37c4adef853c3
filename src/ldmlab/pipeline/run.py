"""One run from data to report, stage by stage: what is in the store is used, what is missing is made.

    data ─▶ (extractor) ─▶ autoencoder ─▶ latents ─▶ denoiser ─▶ samples ─▶ scores ─▶ report

`makers/` has one function a stage; `execute` is their order.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ldmlab import build
from ldmlab.config.compose import Composed
from ldmlab.errors import UserError
from ldmlab.pipeline import budget, steering, weights_denoiser, weights_first_stage
from ldmlab.pipeline.checks import check_fit
from ldmlab.pipeline.context import Context
from ldmlab.pipeline.first_stage import make_autoencoder, make_data, make_latents, make_reconstructions
from ldmlab.pipeline.forecast import rows_of, table
from ldmlab.pipeline.launch import make_accelerator, set_threads
from ldmlab.pipeline.plan import Plan, make_plan
from ldmlab.pipeline.second_stage import make_denoiser, make_samples, make_scores
from ldmlab.store.card import machine, stamp
from ldmlab.store.files import read_json, write_json
from ldmlab.store.store import Store
from ldmlab.training.tracking import as_text


def prepare(composed: Composed) -> tuple[Plan, Store, Any, Any]:
    """Data, checks and plan: everything that can be wrong is found here. Trains nothing, writes at most data caches."""
    cfg = composed.cfg
    weights_first_stage.check(cfg, composed.choices)
    store = Store(cfg.store, verify=cfg.verify is not False)
    caches = store.root / "data" / "cache"
    data, val = build.dataset(cfg, "train", caches), build.dataset(cfg, "val", caches)
    weights_denoiser.check(cfg, composed.choices, data)
    sized = budget.choose_width(cfg, data)
    check_fit(cfg, data, val)
    steering.check(cfg, data)
    plan = make_plan(cfg, composed.choices, data, val, store)
    plan.rows = rows_of(cfg, plan, data, val)
    plan.notes += [*([sized] if sized else []), *weights_denoiser.notes(cfg)]
    return plan, store, data, val


def execute(composed: Composed, command: str, may_train: bool = True) -> Path | None:
    """Print the plan, make what is missing, return the run's folder (None for a dry run).

    Raises UserError when something would have to be trained and `may_train` is False.
    """
    cfg = composed.cfg
    set_threads(cfg.runtime.threads)
    plan, store, data, val = prepare(composed)
    if cfg.dry_run:
        verify(plan, store)
        print("\n ".join([as_text(table(plan, store, costs=True)), *plan.notes]))
        return None
    if not may_train:
        stages = [(plan.autoencoder, cfg.ae.fit), (plan.denoiser, cfg.ldm.fit)]
        if plan.noisy_classifier is not None:
            stages.append((plan.noisy_classifier, cfg.guidance.classifier.fit))
        for address, fit in stages:
            if fit is not None and store.done(address) is None:
                raise UserError(
                    f"the {address.stage} {address.id} is not trained yet, and this command trains nothing. "
                    f"Train it first: {command.replace('score.py', 'train.py').replace('sample.py', 'train.py')}"
                )
    accelerator = make_accelerator(cfg.runtime.device)
    ctx = Context(cfg, composed.choices, plan, store, accelerator, data, val)
    ctx.say("\n ".join([as_text(table(plan, store, costs=False)), *plan.notes]) + "\n")
    if ctx.main:
        verify(plan, store)
    make_data(ctx)
    order: list[tuple[str, Callable[[], object]]] = [
        ("autoencoder", lambda: (make_autoencoder(ctx), make_reconstructions(ctx))),
        ("latents", lambda: make_latents(ctx)),
        ("denoiser", lambda: make_denoiser(ctx)),
        ("samples", lambda: [make_samples(ctx, e) for e in plan.evaluations]),
        ("scores", lambda: [make_scores(ctx, e) for e in plan.evaluations]),
    ]
    for name, work in order:
        work()
        if name == cfg.until:
            break
    folder = record(ctx, command)
    accelerator.end_training()
    return folder


def verify(plan: Plan, store: Store) -> None:
    """Raises DataError when a file of a finished stage of this run was altered: before anything is made from it."""
    for address in [*(row.address for row in plan.rows), plan.reference]:
        store.finished(address)


def record(ctx: Context, command: str) -> Path:
    """`runs/<name>-<id>/run.json`: the run's stages and where they lie; what reports read."""
    folder = ctx.store.folder(ctx.plan.run)
    if ctx.main:
        path = folder / "run.json"
        before = read_json(path) if path.exists() else {}
        created = before.get("created") or stamp(time.time())
        # A job of a sweep repeats the word sweeps=…; the same run may be a cell of several studies. Not part of any id.
        studies = sorted({*before.get("studies", []), *([ctx.choices["sweeps"]] if "sweeps" in ctx.choices else [])})
        stages = []
        for row in ctx.plan.rows:
            at = ctx.store.folder(row.address)
            seal = ctx.store.done(row.address)
            stages.append(
                {
                    "stage": row.address.stage, "id": row.address.id, "name": row.address.name,
                    "folder": f"../../{at.relative_to(ctx.store.root)}", "state": "done" if seal else "unfinished",
                    "what": row.what, "seconds": seal["seconds"] if seal else 0.0, "upstream": row.address.upstream,
                }
            )  # fmt: skip
        run = {
            "id": ctx.plan.run.id, "name": ctx.plan.run.name, "title": title(ctx), "command": command, "created": created,
            "studies": studies, "choices": ctx.choices, "machine": machine(),
            "config": OmegaConf.to_container(ctx.cfg, resolve=True), "stages": stages,
        }  # fmt: skip
        if before and not ctx.store.writable:
            ctx.say(" note: the store is read-only, so the run's record and page stay as they were")
        elif before != run:
            write_json(path, run)
    ctx.barrier()
    return folder


def title(ctx: Context) -> str:
    return " · ".join(ctx.choices[g] for g in ("data", "ae", "ldm", "cond"))
