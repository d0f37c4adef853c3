"""One run from data to report, stage by stage: what is in the store is used, what is missing is made.

data ─▶ (extractor) ─▶ autoencoder ─▶ latents ─▶ denoiser ─▶ samples ─▶ scores ─▶ report
"""

import os
import shlex
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ldmlab import build, terminal
from ldmlab.config.complete import files_of
from ldmlab.config.compose import Composed
from ldmlab.data import duplicates
from ldmlab.errors import ConfigError, UserError
from ldmlab.pipeline import (
    budget,
    gaussian,
    memory,
    per_rank,
    planned,
    sharding,
    snapshots,
    weights_denoiser,
    weights_first_stage,
)
from ldmlab.pipeline.context import Context
from ldmlab.pipeline.launch import STAGES, check_device, keep_memory, make_accelerator, set_threads
from ldmlab.pipeline.learning_rate import LearningRateStage
from ldmlab.pipeline.meeting import meet
from ldmlab.pipeline.plan import Plan, in_order, table
from ldmlab.pipeline.resolved import resolve
from ldmlab.pipeline.stage import Stage
from ldmlab.store.card import machine, stamp
from ldmlab.store.files import read_json, write_json
from ldmlab.store.store import Store
from ldmlab.training import tracking

PLANNED = "no folder {roots} here: planned with the counts of conf/experiment/paper, so ids are not those of the run"


def prepare(composed: Composed) -> Plan:
    """Data, parts, checks and plan: everything that can be wrong is found here. Trains nothing, writes at most data caches."""
    cfg, choices = composed.cfg, composed.choices
    check_device(cfg.runtime.device)
    store = Store(cfg.store, verify=cfg.verify is not False)
    caches = store.root / "data" / "cache"
    opened = partial(planned.dataset, cfg) if planned.planned(cfg) else partial(build.dataset, cfg, cache=caches)
    data, val = opened(split="train"), opened(split="val")
    weights_denoiser.check_options(cfg)
    gaussian.check_options(cfg)
    sharding.check_options(cfg)
    choice = budget.choose_width(cfg, data, store)
    cfg = choice.cfg
    resolved = resolve(cfg, choices, data, val, caches, composed.asked)
    if choice.line is not None and choice.facts is not None:
        resolved = replace(resolved, budget=choice.facts)
        choice.facts["training"] = budget.totals(resolved)
        resolved.notes.append("\n ".join([choice.line, budget.totals_line(choice.facts["training"])]))
    weights_first_stage.check(cfg, choices, resolved.autoencoder)
    weights_denoiser.check(cfg, choices, resolved.denoiser, resolved.objective)
    too_large = memory.complaint(resolved)  # of this machine: execute refuses, a plan may be for another one
    said = [too_large] if too_large else []
    said += [PLANNED.format(roots=", ".join(planned.roots(cfg.data)))] if planned.planned(cfg) else []
    resolved.notes.extend([*said, *duplicates.notes(data, val), *weights_denoiser.notes(cfg), *snapshots.notes(cfg)])
    plan = Plan(resolved, store)
    if unsplit := sharding.complaint(plan):  # as above
        plan.notes.append(unsplit)
    if cfg.dry_run and cfg.ldm.fit is not None and not resolved.denoiser.closed_form and resolved.ranks > 1:
        plan.notes.append(per_rank.text(resolved))
    check_files(plan)
    return plan


def check_files(plan: Plan) -> None:
    """ConfigError when a file that a part reads (weights, a picture) is not there, and a stage that needs it is not finished."""
    done = {stage.name for stage in plan.order if plan.store.done(stage.address) is not None}
    if len(done) == len(plan.order):
        return
    for path, file in files_of(plan.resolved.cfg).items():
        if not (path.startswith("ae.") and "autoencoder" in done) and not Path(file).expanduser().is_file():
            raise ConfigError(f"{path}={file}: no such file. Give the path of one that is there.")


def execute(composed: Composed, command: str, may_train: bool = True) -> Path | None:
    """Print the plan, make what is missing, return the run's folder (None for a dry run).

    Raises UserError when something would have to be trained and `may_train` is False.
    """
    set_threads(composed.cfg.runtime.threads)
    plan = prepare(composed)
    cfg = plan.resolved.cfg
    if cfg.dry_run:
        verify(plan)
        print("\n ".join([terminal.table(table(plan, costs=True)), *plan.notes]))
        return None
    memory.check(plan.resolved)
    sharding.check(plan)
    if not may_train:
        refuse_training(plan, command)
    keep_memory()
    meeting = meet(cfg.runtime.timeout)
    ctx = Context(cfg, plan, make_accelerator(cfg.runtime.device, cfg.runtime.timeout))
    with meeting.answering() if meeting else nullcontext():
        return _make(ctx, command)


def _make(ctx: Context, command: str) -> Path | None:
    """Every stage, and the run's record; or the stages alone that the environment names."""
    plan = ctx.plan
    ctx.say("\n ".join([terminal.table(table(plan, costs=False)), *plan.notes]) + "\n")
    if ctx.main:
        verify(plan)
    folder = None
    if STAGES in os.environ:
        make_all(ctx, named_stages(plan, os.environ[STAGES].split(",")))
    else:
        with following(ctx, command):
            make_all(ctx)
            folder = record(ctx, command)
    ctx.accelerator.end_training()
    return folder


def named_stages(plan: Plan, ids: Sequence[str]) -> list[Stage]:
    """The stages with these ids and all they stand on. Raises UserError for an id that the run does not have."""
    if missing := set(ids) - {stage.address.id for stage in plan.order}:
        raise UserError(f"{STAGES} names {min(missing)}, which is no stage of this run. Submit the command again.")
    return in_order(stage for stage in plan.order if stage.address.id in ids)


def make_all(ctx: Context, stages: Sequence[Stage] | None = None) -> None:
    """Every stage of the run, or these, in order; while another process builds one, those that do not stand on it come first."""
    waiting = list(ctx.plan.order if stages is None else stages)
    while waiting:
        ready = [stage for stage in waiting if not any(on in waiting for on in stage.upstream().values())]
        alone = ctx.ranks.count == 1  # several ranks must agree, so they wait
        stage = next((stage for stage in ready if not (alone and ctx.store.busy(stage.address))), ready[0])
        stage.make(ctx.of(stage.plan))
        waiting.remove(stage)


def refuse_training(plan: Plan, command: str) -> None:
    """UserError when a stage that learns on this data is not in the store; its command is without what sample.py alone reads."""
    request = plan.resolved.request
    asked = request.asked.typed if request is not None else ()
    words = shlex.join(word for word in shlex.split(command) if word not in asked)
    for stage in plan.order:
        if stage.trains and plan.store.done(stage.address) is None:
            raise UserError(
                f"the {stage.name} {stage.address.id} is not trained yet, and this command trains nothing. "
                f"Train it first: {words.replace('score.py', 'train.py').replace('sample.py', 'train.py')}"
            )


def verify(plan: Plan) -> None:
    """Raises DataError when a file of a finished stage of this run was altered: before anything is made from it."""
    for stage in plan.order:
        plan.store.finished(stage.address)


def record(ctx: Context, command: str) -> Path:
    """Writes `runs/<name>-<id>/run.json`: the run's stages and where they lie; what reports read."""
    folder = ctx.store.folder(ctx.plan.run)
    if ctx.main:
        path = folder / "run.json"
        before, run = read_json(path) if path.exists() else {}, described(ctx, command)
        if before and not ctx.store.writable:
            ctx.say(" note: the store is read-only, so the run's record and page stay as they were")
        elif before != run:
            write_json(path, run)
    ctx.barrier()
    return folder


def described(ctx: Context, command: str) -> dict[str, Any]:
    """What run.json holds, with the stages in their present states."""
    plan, choices = ctx.plan, ctx.plan.resolved.choices
    path = ctx.store.folder(plan.run) / "run.json"
    before = read_json(path) if path.exists() else {}
    created = before.get("created") or stamp(time.time())
    # A job of a sweep repeats the word sweeps=…; the same run may be a cell of several studies. Not part of any id.
    studies = sorted({*before.get("studies", []), *([choices["sweeps"]] if "sweeps" in choices else [])})
    stages = []
    for stage, row in plan.rows:
        at, seal = ctx.store.folder(stage.address), ctx.store.done(stage.address)
        stages.append(
            {
                "stage": stage.name, "id": stage.address.id, "name": stage.address.name,
                "folder": f"../../{at.relative_to(ctx.store.root)}", "state": "done" if seal else "unfinished",
                "what": row.what, "seconds": seal["seconds"] if seal else 0.0, "upstream": stage.address.upstream,
            }
        )  # fmt: skip
    run = {
        "id": plan.run.id, "name": plan.run.name, "title": title(choices), "command": command, "created": created,
        "studies": studies, "choices": choices, "machine": machine(),
        "config": OmegaConf.to_container(ctx.cfg, resolve=True), "stages": stages,
    }  # fmt: skip
    run |= {"budget": plan.resolved.budget} if plan.resolved.budget else {}
    for tuned in LearningRateStage.of(plan) if plan.has(LearningRateStage.name) else ():
        if ctx.store.done(tuned.address) is not None:
            run |= {"tuned": {"ldm.fit.lr": tuned.result()["rate"]}}
    return run


def following(ctx: Context, command: str) -> AbstractContextManager[None]:
    """tracking.wandb: the process that mirrors this run while it is made; of the main process alone."""
    if not ctx.main or ctx.cfg.tracking.wandb is None or not ctx.store.writable:
        return nullcontext()
    return tracking.following(ctx.store.folder(ctx.plan.run), described(ctx, command), ctx.cfg.tracking)


def title(choices: dict[str, str]) -> str:
    return " · ".join(choices[group] for group in ("data", "ae", "ldm", "cond"))
