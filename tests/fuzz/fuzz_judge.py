"""One composition tried: refused in one good sentence, or accepted, prepared and trained for one step with finite numbers."""

import math
import re
import tempfile
import time
import traceback
from collections import Counter
from typing import Any

import torch
from fuzz_options import BASE, COMPOSITIONS, Option, declared, hostile, near
from hypothesis import strategies as st

from ldmlab import build
from ldmlab.config.compose import load
from ldmlab.errors import UserError
from ldmlab.pipeline.resolved import Resolved
from ldmlab.pipeline.run import prepare
from ldmlab.randomness import Draws
from ldmlab.training.autoencoder_loss import AutoencoderLoss
from ldmlab.training.diffusion_loss import DiffusionLoss

WAY_OUT = re.compile(
    r"\b(Leave|leave|Use|use|Write|write|Give|give|Set|set|Choose|Change|change|Add|Did you mean|takes|Correct|Widen|There are|"
    r"needs|nearest|Remove|quote)\b"
)
SECONDS = 2.0  # of the processor, for a refusal


class Fuzzed:
    """Counts of what happened, and the cases that went wrong."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.bad: list[str] = []
        self.store = tempfile.TemporaryDirectory()

    def note(self, kind: str, words: list[str], said: str = "") -> None:
        self.counts[kind] += 1
        if kind not in ("accepted", "refused"):
            self.bad.append(f"{kind}: {' '.join(words)[:300]}\n    {said[:1500]}")

    def table(self) -> str:
        good = self.counts["accepted"] + self.counts["refused"]
        kinds = ("accepted", "refused", "traceback", "slow", "not finite", "no way out")
        lines = [f" {'good':<12}{good}", *(f" {kind:<12}{self.counts[kind]}" for kind in kinds)]
        return "\n".join([*lines, *self.bad])


_OPTIONS: dict[int, dict[str, Option]] = {}


def options_of(which: int) -> dict[str, Option]:
    """Every declared option of a composition; walked once."""
    if which not in _OPTIONS:
        _OPTIONS[which] = declared([*BASE, *COMPOSITIONS[which]])
    return _OPTIONS[which]


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[str], list[str]]:
    """(words of a composition, words about some of its options): half of them stay inside every declaration."""
    which = draw(st.integers(0, len(COMPOSITIONS) - 1))
    found = options_of(which)
    paths = draw(st.lists(st.sampled_from(sorted(found)), min_size=1, max_size=3, unique=True))
    if draw(st.integers(0, 9)) < 5:
        return [*BASE, *COMPOSITIONS[which]], [f"{path}={draw(near(found[path]))}" for path in paths]
    return [*BASE, *COMPOSITIONS[which]], draw(hostile(paths[0]))


def judge(base: list[str], words: list[str], seen: Fuzzed, train: bool) -> None:
    """Try one case and note how it went."""
    typed = {word.partition("=")[0].strip().lstrip("+~") for word in words}
    kept = [word for word in base if word.partition("=")[0] not in typed]
    began, resolved = time.process_time(), None
    try:
        composed = load([*kept, *words, *([] if "store" in typed else [f"store={seen.store.name}"])])
        if train:
            resolved = prepare(composed).resolved
            wrong = one_step(resolved)
    except UserError as error:
        seconds, said = time.process_time() - began, str(error)
        names = (
            {path for path in typed}
            | {path.rpartition(".")[2] for path in typed}
            | {path.split(".")[0] for path in typed}
        )
        if "\n" in said or not WAY_OUT.search(said) or not any(name in said for name in names):
            seen.note("no way out", words, said)
        elif seconds > SECONDS and not train:
            seen.note("slow", words, f"{seconds:.1f} s: {said}")
        else:
            seen.note("refused", words)
    except Exception:
        seen.note("traceback", words, traceback.format_exc()[-1200:])
    else:
        if train and wrong:
            seen.note("not finite", words, wrong)
        else:
            seen.note("accepted", words)


def one_step(found: Resolved) -> str:
    """Train what this composition trains for one step of two images; what is not finite afterwards, or ''."""
    cfg, size = found.cfg, found.resolution
    batch: dict[str, Any] = {
        "image": torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1,
        "position": torch.arange(2), "label": torch.zeros(2, dtype=torch.long),
    }  # fmt: skip
    ae = build.autoencoder(cfg)
    if cfg.ae.fit is not None and not build.needs_classifier(cfg):
        terms = build.first_stage_loss(cfg, None)
        if terms.discriminator is None or terms.norm_images <= 2:
            stage = AutoencoderLoss(ae, terms, Draws(cfg.ae.seed))
            for player in stage.players:
                if wrong := _step(stage, player, batch, cfg.ae.fit):
                    return f"ae: {wrong}"
    if cfg.ldm.fit is not None:
        data = found.data
        model = build.denoiser(cfg, build.autoencoder(cfg).requires_grad_(False), data)
        objective = build.objective(cfg, found.latent_shape[1])
        loss = DiffusionLoss(model, build.autoencoder(cfg), objective, Draws(cfg.ldm.seed), cfg.cond.drop, 2)
        return _step(loss, "denoiser", batch, cfg.ldm.fit)
    return ""


def _step(stage: Any, player: str, batch: dict[str, Any], fit: Any) -> str:
    module = stage.modules[player]
    optimiser = build.optimizer(module, fit)
    loss, _ = stage.loss(batch, player, 10**9)
    if not math.isfinite(float(loss.detach())):
        return f"{player}'s loss is {float(loss.detach())}"
    loss.backward()
    if fit.clip is not None:
        torch.nn.utils.clip_grad_norm_(module.parameters(), fit.clip)
    optimiser.step()
    wrong = [name for name, p in module.named_parameters() if not torch.isfinite(p).all()]
    return f"{player}: {', '.join(wrong[:3])}" if wrong else ""
