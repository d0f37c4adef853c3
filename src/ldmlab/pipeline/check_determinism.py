"""`check=determinism`: the composition's trainings for a few steps, and a few samples, computed in ways that must not matter.

    resume       2k steps, against k, a signal, and k more from the checkpoint       the same bits
    processes    one process, against two                                            up to the order of sums
    evaluation   samples drawn in batches of n, against batches of n / 2             at most one of 255 levels apart
    compile      as it is, against compiled blocks                                   up to the order of sums

Each way has a store of its own, which is removed afterwards. What must have the same bits is compared tensor by tensor, in the order
of the stages. Up to the order of sums, each step's losses and gradient norms are compared, and not weights: a bias before a norm of its
own channel, or of keys, has no gradient but rounding errors, of which Adam makes full steps that change no answer.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldmlab import build, terminal
from ldmlab.config.compose import Composed
from ldmlab.errors import UserError
from ldmlab.pipeline import run
from ldmlab.pipeline.context import Context
from ldmlab.pipeline.launch import make_accelerator, set_threads
from ldmlab.pipeline.plan import Plan
from ldmlab.pipeline.replaced import replaced
from ldmlab.store.checkpoint import load_tensors
from ldmlab.store.files import read_array
from ldmlab.training import loop
from ldmlab.training.loop import Stopped

STEPS = 3  # k: before the signal, and after it
SAMPLES = 8
EACH_STEP = 1e-9  # seconds between logs
TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2}  # of a loss or a gradient's norm
LEVELS = 1  # of 255, between images of two batch sizes
TRAINED = ("autoencoder", "denoiser")

Result = dict[str, Tensor]


@dataclass
class Verdict:
    """What one comparison found. fits: None where it was not made."""

    name: str
    words: str
    fits: bool | None


def check_determinism(composed: Composed) -> None:
    """Print what each comparison finds; UserError when one is beyond its tolerance."""
    set_threads(composed.cfg.runtime.threads)
    short = shortened(composed)
    with tempfile.TemporaryDirectory(prefix="ldmlab-check-") as folder:
        places = {name: Path(folder) / name for name in ("straight", "resumed", "processes", "halves", "compiled")}
        straight, images = computed(short, places["straight"])
        found = [
            Verdict("resume", *judged(straight, resumed(short, places["resumed"]), 0.0)),
            processes(short, straight, places),
            evaluation(short, images, places),
            compiled(short, straight, places),
        ]
    rows = [["check", "result", ""]]
    rows += [[v.name, v.words, {True: "", False: "DIFFERS", None: "not made"}[v.fits]] for v in found]
    print(terminal.table(rows))
    if wrong := [v.name for v in found if v.fits is False]:
        raise UserError(f"check=determinism: {', '.join(wrong)}: the results differ beyond the tolerance.")


def shortened(composed: Composed) -> Composed:
    """2k steps of each training without averages or snapshots, few samples, until samples."""
    cfg = build.editable(composed.cfg)
    cfg.until, cfg.eval.samples, cfg.eval.at = "samples", SAMPLES, [1.0]
    cfg.eval.batch_size, cfg.runtime.log_seconds = SAMPLES, EACH_STEP
    for fit in (cfg.ae.fit, cfg.ldm.fit):
        if fit is not None:
            fit.images, fit.snapshots, fit.keep_state = 2 * STEPS * fit.batch_size, [], False
    return Composed(cfg, composed.choices)


def changed(composed: Composed, values: dict[str, Any]) -> Composed:
    """With other values of some options."""
    from omegaconf import OmegaConf

    cfg = build.editable(composed.cfg)
    for path, value in values.items():
        OmegaConf.update(cfg, path, value)
    return Composed(cfg, composed.choices)


def computed(composed: Composed, store: Path) -> tuple[Result, Tensor]:
    """The weights of every training, and the samples."""
    cfg = changed(composed, {"store": str(store)})
    plan = run.prepare(cfg)
    run.make_all(Context(cfg.cfg, plan, make_accelerator(cfg.cfg.runtime.device)))
    return weights(plan), samples(plan)


def weights(plan: Plan) -> Result:
    """Of every stage that trains a network of the run, by stage and name."""
    found: Result = {}
    for stage in plan.order:
        path = plan.store.folder(stage.address) / "weights.safetensors"
        if stage.name in TRAINED and path.is_file():
            found |= {f"{stage.name} {name}": tensor for name, tensor in load_tensors(path).items()}
    return found


def samples(plan: Plan) -> Tensor:
    """uint8 [N, H, W, 3]."""
    stage = next(stage for stage in plan.order if stage.name == "samples")
    return torch.from_numpy(np.array(read_array(plan.store.folder(stage.address) / "images.npy")))


def logged(store: Path) -> Result:
    """Losses and gradient norms of every step of every training in a store, as single numbers."""
    found: Result = {}
    for file in (file for name in TRAINED for file in sorted((store / name).glob("*/metrics.jsonl"))):
        for row in map(json.loads, file.read_text().splitlines()):
            said = {key: value for key, value in row.items() if "loss" in key or "norm" in key}
            for key, value in said.items() if row["split"] == "train" else ():
                found[f"{file.parents[1].name} {key} after {row['images']} images"] = torch.tensor(value)
    return found


def alike(first: Result, second: Result, stores: tuple[Path, Path], tolerance: float) -> tuple[str, bool]:
    """Words and whether the trainings of two stores agree step by step; what the words say of the weights decides nothing."""
    words, fits = judged(logged(stores[0]), logged(stores[1]), tolerance, "numbers")
    apart = [name for name, tensor in first.items() if not torch.equal(tensor, second[name])]
    of = f"first that differs: {apart[0]}; {len(apart)} of {len(first)}" if apart else f"bit-equal, {len(first)}"
    return f"{words}; weights: {of}", fits


def judged(first: Result, second: Result, tolerance: float, what: str = "tensors") -> tuple[str, bool]:
    """Words and whether all tensors agree: |a - b| / |a| of each (Euclidean), at most `tolerance`."""
    apart = {
        name: distance(tensor, second[name]) for name, tensor in first.items() if not torch.equal(tensor, second[name])
    }
    if not apart:
        return f"bit-equal: {len(first)} {what}", True
    beyond = [name for name, far in apart.items() if not far <= tolerance]
    name = beyond[0] if beyond else max(apart, key=lambda name: apart[name])
    words = f"first beyond {tolerance:g}" if beyond else f"within {tolerance:g}; largest"
    return f"{words}: {name} ({apart[name]:.2g}); {len(apart)} of {len(first)} {what} differ", not beyond


def distance(a: Tensor, b: Tensor) -> float:
    """|a - b| / |a|, Euclidean."""
    a, b = a.double(), b.double()
    return float((a - b).norm() / a.norm().clamp_min(1e-12))


def resumed(composed: Composed, store: Path) -> Result:
    """The weights when every training is stopped after k steps by a signal, and the command is given again."""
    cfg = changed(composed, {"store": str(store), "until": "denoiser"})
    plan = run.prepare(cfg)
    stopped = True
    while stopped:  # once for each training
        try:
            with stopping_after(STEPS):
                run.make_all(Context(cfg.cfg, plan, make_accelerator(cfg.cfg.runtime.device)))
            stopped = False
        except Stopped as signalled:
            print(f" {signalled}", flush=True)
    return weights(plan)


@contextlib.contextmanager
def stopping_after(steps: int) -> Iterator[None]:
    """A SIGTERM comes in step number `steps` of a training that begins inside; one that goes on is left alone."""
    real: Callable[..., Any] = loop.train_step

    def train_step(loss: Any, micros: Any, images: int, budget: Any, *rest: Any) -> Any:
        if images == (steps - 1) * budget.batch_size:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(loss, micros, images, budget, *rest)

    with replaced(loop, train_step=train_step):
        yield


def processes(composed: Composed, straight: Result, places: dict[str, Path]) -> Verdict:
    """Two ranks on this machine, started as a command is."""
    cfg, store = composed.cfg, places["processes"]
    batches = [fit.batch_size for fit in (cfg.ae.fit, cfg.ldm.fit) if fit is not None]
    if any(size % 2 for size in batches):
        return Verdict("processes", f"batches of {batches} do not divide among two", None)
    values = {
        "runtime.processes": 2, "store": str(store), "until": "denoiser", "check": "null", "runtime.log_seconds": EACH_STEP,
        **{f"{part}.fit.{key}": value for part in ("ae", "ldm") if cfg[part].fit is not None
           for key, value in (("images", cfg[part].fit.images), ("snapshots", "[]"), ("keep_state", "false"))},
    }  # fmt: skip
    words = [word for word in sys.argv[1:] if word.partition("=")[0] not in values]
    words += [f"{path}={value}" for path, value in values.items()]
    ended = subprocess.run([sys.executable, sys.argv[0], *words], capture_output=True, text=True, check=False)
    if ended.returncode:
        return Verdict(
            "processes", f"two processes ended with code {ended.returncode}: {ended.stderr.strip()[-300:]}", False
        )
    plan = run.prepare(changed(composed, {"store": str(store), "until": "denoiser"}))
    stores = places["straight"], store
    return Verdict("processes", *alike(straight, weights(plan), stores, tolerance(composed)))


def evaluation(composed: Composed, images_NHWC: Tensor, places: dict[str, Path]) -> Verdict:
    """The same weights, samples drawn in two batches: a link to the first store's stages saves the training."""
    halves = changed(composed, {"store": str(places["straight"]), "eval.batch_size": SAMPLES // 2})
    plan = run.prepare(halves)
    stage = next(stage for stage in plan.order if stage.name == "samples")
    plan.store.folder(stage.address).rename(places["halves"])
    run.make_all(Context(halves.cfg, plan, make_accelerator(halves.cfg.runtime.device)))
    apart_NHWC = (images_NHWC.int() - samples(plan).int()).abs()
    if not apart_NHWC.any():
        return Verdict("evaluation", f"bit-equal: {len(images_NHWC)} images", True)
    worst = int(apart_NHWC.max())
    image = int((apart_NHWC > LEVELS).flatten(1).any(1).int().argmax())
    words = (
        f"within {LEVELS} of 255 levels"
        if worst <= LEVELS
        else f"first beyond {LEVELS} level: image {image}, by up to {worst}"
    )
    return Verdict(
        "evaluation", f"{words}; {float((apart_NHWC > 0).float().mean()):.2%} of the values differ", worst <= LEVELS
    )


def compiled(composed: Composed, straight: Result, places: dict[str, Path]) -> Verdict:
    """With runtime.compile=true; on a CPU that takes minutes, and a C++ compiler."""
    if str(composed.cfg.runtime.compile).lower() == "true":
        return Verdict("compile", "runtime.compile=true: there is nothing to compare with; use false", None)
    fast, _ = computed(changed(composed, {"runtime.compile": True}), places["compiled"])
    stores = places["straight"], places["compiled"]
    return Verdict("compile", *alike(straight, fast, stores, tolerance(composed)))


def tolerance(composed: Composed) -> float:
    """Of the least precise training."""
    fits = [fit for fit in (composed.cfg.ae.fit, composed.cfg.ldm.fit) if fit is not None]
    return max(TOLERANCE[fit.precision] for fit in fits) if fits else TOLERANCE["fp32"]
