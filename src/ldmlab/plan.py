"""What a command will do: the stages of one run, their ids, their state and what they cost. Builds nothing but meta tensors.

Each stage's address is a function of its own completed options and of the ids it stands on (architecture §2); this file is the
only place that says which option belongs to which stage. `VERSIONS` grows when a stage's code changes what it computes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from ldmlab import build, imported, imported_denoiser, steering
from ldmlab.checkpoint import Checkpoints
from ldmlab.diffusion.guidance import share_within
from ldmlab.loop import images_at, total_steps
from ldmlab.metrics.features import Extractor
from ldmlab.store import Address, Store
from ldmlab.tracking import clock, number

VERSIONS = {
    "data": 1, "extractor": 1, "autoencoder": 1, "decoder": 1, "reconstructions": 2, "latents": 1, "denoiser": 1, "samples": 1,
    "noisy_classifier": 1, "reference": 1, "scores": 1, "runs": 1,
}  # fmt: skip


@dataclass
class Evaluation:
    """Samples and scores of one snapshot of the denoiser."""

    images: int  # training images the snapshot has seen; 0 for an imported denoiser
    samples: Address
    scores: Address


@dataclass
class Row:
    """One line of the plan table."""

    address: Address
    what: str
    images: int  # of work
    flops: float = 0.0  # per image of work
    megabytes: float = 0.0


@dataclass
class Plan:
    """The addresses of a run. A stage that this composition does not have is None."""

    data: Address
    extractor: Address | None
    autoencoder: Address
    decoder: Address | None  # ae.train=decoder: another decoder for the same latents
    reconstructions: Address
    latents: Address | None
    denoiser: Address
    reference: Address
    evaluations: list[Evaluation]
    run: Address
    until: str
    noisy_classifier: Address | None = None  # guidance=classifier
    weak: steering.WeakModel | None = None  # guidance=autoguidance
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # to be read with the table


def options(node: Any) -> Any:
    """A config node as plain data for an id, without a cool-down that is not there (the option came later than most runs)."""
    return _spoken(OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node)


def _spoken(plain: Any) -> Any:
    if not isinstance(plain, dict):
        return plain
    return {k: _spoken(v) for k, v in plain.items() if not (k == "cooldown" and v == 0 and "warmup" in plain)}


def make_plan(cfg: DictConfig, choices: dict[str, str], data: Any, val: Any, store_root: Path) -> Plan:
    """Every stage of the run that `cfg` (completed and checked) describes."""

    def address(stage: str, name: str, own: dict[str, Any], **upstream: Address | str) -> Address:
        ids = {k: v if isinstance(v, str) else v.id for k, v in upstream.items()}
        return Address(stage, name, VERSIONS[stage], {k: options(v) for k, v in own.items()}, ids)

    data_at = address(
        "data", choices["data"], {"train": data.fingerprint(), "val": val.fingerprint(), "flip": data.flip}
    )
    extractor_at, extractor_id = _extractor(cfg, choices, store_root, address)
    autoencoder = _autoencoder(cfg, choices, data_at, extractor_id, address)
    decoder = None
    if cfg.ae.train == "decoder":
        own = {"fit": cfg.ae.decoder_fit, "loss": cfg.ae.loss, "seed": cfg.seed}
        classifier = {"classifier": extractor_id} if build.needs_classifier(cfg) else {}
        decoder = address("decoder", choices["ae"], own, autoencoder=autoencoder, data=data_at, **classifier)
    first_stage = {"decoder": decoder} if decoder else {"autoencoder": autoencoder}
    tile = (
        {"tile": cfg.ae.tile} if cfg.ae.tile is not None else {}
    )  # tiles change what is encoded and decoded, a little
    reconstructions = address(
        "reconstructions", choices["ae"], {"images": cfg.eval.reconstructions, "bootstrap": cfg.eval.bootstrap, **tile},
        **first_stage, data=data_at, extractor=extractor_id,
    )  # fmt: skip
    latents = None
    if caches(cfg, data):
        latents = address(
            "latents", choices["ae"], {"dtype": cfg.latents.dtype, **tile}, autoencoder=autoencoder, data=data_at
        )
    cond = options(cfg.cond)
    cond.pop("label")
    stands_on = {"latents": latents} if latents else {"autoencoder": autoencoder, "data": data_at}
    trained = {
        "ldm": _denoiser_options(cfg), "cond": cond, "objective": _objective_options(cfg), "seed": cfg.seed,
        **({} if latents else tile),
    }  # fmt: skip
    if cfg.ldm.weights is not None:
        trained, stands_on = imported_denoiser.options(cfg), {"autoencoder": autoencoder}
    denoiser = address("denoiser", f"{choices['ldm']}-{choices['ae']}", trained, **stands_on)
    reference = address(
        "reference", choices["data"], {"reference": cfg.eval.reference}, data=data_at, extractor=extractor_id
    )
    tuned = {"decoder": decoder} if decoder else {}
    weak = steering.weak_model(cfg, store_root, denoiser, build.conditioner(cfg, data))
    guides: dict[str, Address | str] = {"weak": weak.id} if weak is not None and weak.id is not None else {}
    noisy_classifier = None
    if cfg.guidance.classifier is not None:
        learns = {**steering.classifier_options(cfg), **({} if latents else tile)}
        noisy_classifier = address("noisy_classifier", choices["ae"], learns, **stands_on)
        guides["classifier"] = noisy_classifier
    steered = steering.sample_options(cfg, weak)
    evaluations = []
    for fraction in sorted(cfg.eval.at):
        images = 0 if cfg.ldm.fit is None else images_at(cfg.ldm.fit, fraction)
        samples = address(
            "samples", choices["sampler"], {**sample_options(cfg, images), **tile, **steered},
            denoiser=denoiser, **tuned, **guides,
        )  # fmt: skip
        scores = address(
            "scores", choices["eval"], {"metrics": cfg.eval.metrics, "bootstrap": cfg.eval.bootstrap},
            samples=samples, reference=reference, extractor=extractor_id,
        )  # fmt: skip
        evaluations.append(Evaluation(images, samples, scores))
    name = "-".join(choices[g] for g in ("data", "ae", "ldm", "cond"))
    ends = {
        "autoencoder": [reconstructions], "latents": [latents or autoencoder], "denoiser": [denoiser],
        "samples": [e.samples for e in evaluations],
    }.get(cfg.until, [reconstructions, *(e.scores for e in evaluations)])  # fmt: skip
    run = address("runs", name, {}, **{f"{a.stage}{i}": a for i, a in enumerate(ends)})
    plan = Plan(
        data_at,
        extractor_at,
        autoencoder,
        decoder,
        reconstructions,
        latents,
        denoiser,
        reference,
        evaluations,
        run,
        cfg.until,
        noisy_classifier,
        weak,
    )
    plan.rows = _rows(cfg, plan, data, val)
    return plan


def sample_options(cfg: DictConfig, images: int) -> dict[str, Any]:
    """What decides a set of samples beside the denoiser."""
    sampler = options(cfg.sampler)
    interval, rescale = sampler.pop("guidance_interval"), sampler.pop("guidance_rescale")
    if sampler["guidance"] != 1:  # without guidance there is nothing to limit or rescale
        sampler |= {"guidance_interval": [float(ratio) for ratio in interval]} if interval is not None else {}
        sampler |= {"guidance_rescale": rescale} if rescale > 0 else {}
    if sampler.get("s_churn") == 0:  # an option that came later; without churn the others say nothing
        sampler = {k: v for k, v in sampler.items() if k not in ("s_churn", "s_tmin", "s_tmax", "s_noise")}
    return {
        "snapshot": images, "weights": cfg.eval.weights, "sampler": sampler, "label_mode": cfg.eval.label_mode,
        "label": cfg.cond.label, "n": cfg.eval.samples, "seed": cfg.eval.seed,
        **({} if cfg.eval.ema_width is None else {"ema_width": cfg.eval.ema_width}),
    }  # fmt: skip


def caches(cfg: DictConfig, data: Any) -> bool:
    """Whether the denoiser trains from cached latents; an imported one does not train.

    Raises ConfigError when a cache was asked for and cannot be.
    """
    from ldmlab.errors import ConfigError
    from ldmlab.stages.latents import unsupported_fields

    identity = cfg.ae.fit is None and cfg.ae.weights is None
    unread = identity or cfg.ldm.weights is not None
    if cfg.latents.cache == "never" or (unread and cfg.latents.cache == "auto"):
        return False  # pixel space: a cache would be a copy of the data
    if missing := unsupported_fields(data):
        if cfg.latents.cache == "always":
            raise ConfigError(
                f"latents.cache=always, but the cache does not carry {', '.join(missing)}; use latents.cache=never."
            )
        return False
    return True


def _denoiser_options(cfg: DictConfig) -> dict[str, Any]:
    """`ldm` without what changes only memory or speed, without `budget`, which became the network's width, and without
    power_ema where none is kept."""
    plain: dict[str, Any] = options(cfg.ldm)
    plain["network"].pop("checkpointing", None)
    plain.pop("budget")
    plain.pop("weights")
    return {k: v for k, v in plain.items() if k != "power_ema" or v}


def _objective_options(cfg: DictConfig) -> dict[str, Any]:
    """`objective` without what says nothing: parts that are not there, and the `delta` of another loss than Huber's.
    Options that came later so leave the ids of older runs alone."""
    plain: dict[str, Any] = options(cfg.objective)
    silent = {"weighting": None, "times": None, "stratified": False}
    if plain.get("loss") != "huber":
        plain.pop("delta", None)
    return {k: v for k, v in plain.items() if k not in silent or v != silent[k]}


def _autoencoder(
    cfg: DictConfig, choices: dict[str, str], data: Address, extractor_id: str, address: Callable[..., Address]
) -> Address:
    """Trained: from its data and all its options. Imported: from the file, and the data if its latent is measured on it."""
    if cfg.ae.weights is not None:
        own, measured = imported.options(cfg)
        return address("autoencoder", choices["ae"], own, **({"data": data} if measured else {}))
    classifier = {"classifier": extractor_id} if build.needs_classifier(cfg) else {}
    own = {"ae": _result_options(cfg.ae), "seed": cfg.seed}
    return address("autoencoder", choices["ae"], own, data=data, **classifier)


def _result_options(ae: DictConfig) -> dict[str, Any]:
    """`ae` of a trained stage, without what changes only memory or speed."""
    plain: dict[str, Any] = options(ae)
    plain["network"].pop("checkpointing", None)
    for name in ("train", "decoder_fit", "tile"):  # they begin where this stage ends
        plain.pop(name)
    plain.pop("weights")
    if plain["latent_scale"]["mode"] != "given":
        plain["latent_scale"] = {k: v for k, v in plain["latent_scale"].items() if k not in ("scale", "shift")}
    return plain


def _extractor(
    cfg: DictConfig, choices: dict[str, str], root: Path, address: Callable[..., Address]
) -> tuple[Address | None, str]:
    """The trained extractor's address, or None and the id of one that comes from a file."""
    if cfg.eval.extractor_fit is not None:
        train = build.shapes(cfg, "train", root / "data" / "cache")
        own = {"extractor": cfg.eval.extractor, "fit": cfg.eval.extractor_fit}
        at = address("extractor", choices["eval"], own, data=train.fingerprint())
        return at, at.id
    made = build.extractor(cfg)
    assert isinstance(made, Extractor)
    return None, made.fingerprint()[:12]


# ---- what it is and what it costs ----------------------------------------------------------------------------------------


def flops_of(call: Callable[[], Any]) -> float:
    """Floating-point operations of one call (multiply and add counted as two), counted while it runs."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:  # with gradients: sampling takes short cuts that training cannot
        call()
    return float(counter.get_total_flops())


def parameters_of(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def millions(count: float) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count / 1e3:.0f} k"


@dataclass
class Costs:
    """Floating-point operations per image of each network's forward pass; zeros when nobody asked."""

    encode: float = 0.0
    decode: float = 0.0
    forward: float = 0.0
    weak: float = 0.0  # autoguidance's other denoiser
    classifier: float = 0.0  # of noisy latents


def _count(ae: Any, model: Any, resolution: int) -> Costs:
    """Runs the networks on the meta device (whose kernels load PyTorch's compiler: 5 s, so only a dry run asks)."""
    image = torch.empty(1, 3, resolution, resolution, device="meta")
    z, t = torch.empty(1, *ae.latent_shape(resolution), device="meta"), torch.zeros(1, dtype=torch.long, device="meta")
    condition = model.conditioner.null(1, "meta")
    return Costs(
        flops_of(lambda: ae.moments(image)),
        flops_of(lambda: ae.decode(z)),
        flops_of(lambda: model.network(z, t, condition)),
    )


def _rows(cfg: DictConfig, plan: Plan, data: Any, val: Any) -> list[Row]:
    size, n, r = data.resolution, len(data), len(val)
    with build.shapes_only():
        ae = build.autoencoder(cfg)
        model = build.denoiser(cfg, ae, data)
    c, h, w = ae.latent_shape(size)
    costs = _count(ae, model, size) if cfg.dry_run else Costs()
    fields = f" · {', '.join(data.fields)}" if data.fields else ""
    rows = [Row(plan.data, f"{number(n)} train · {number(r)} val · {size}x{size}{fields}", 0)]
    if plan.extractor:
        fit = cfg.eval.extractor_fit
        net = build.extractor(cfg)
        per_image = 3 * flops_of(lambda: net(torch.zeros(1, 3, size, size))) if cfg.dry_run else 0.0
        what = f"{plan.extractor.name} classifier {millions(parameters_of(net))}"
        rows.append(Row(plan.extractor, what, total_steps(fit) * fit.batch_size, per_image))
    rows += _first_stage_rows(cfg, plan, ae, (c, h, w), costs, min(cfg.eval.reconstructions, r))
    if plan.until == "autoencoder":
        return rows
    if plan.latents:
        mirrors, channels = 2 if data.flip else 1, ae.regulariser.channels_in(c)
        megabytes = n * mirrors * channels * h * w * (2 if cfg.latents.dtype == "float16" else 4) / 1e6
        what = f"{h}x{w}x{channels} moments{', both flips' if mirrors == 2 else ''}"
        rows.append(Row(plan.latents, what, n * mirrors, costs.encode, megabytes))
    if plan.until == "latents":
        return rows
    fit = cfg.ldm.fit
    work = 0 if fit is None else total_steps(fit) * fit.batch_size
    per_image = 3 * costs.forward + (0 if plan.latents else costs.encode)
    gigaflops = f" · {3 * costs.forward / 1e9:.3g} GFLOP/img" if costs.forward and fit is not None else ""
    origin = f"{number(work)} img" if fit is not None else f"imported from {Path(cfg.ldm.weights).name}"
    what = f"{type(model.network).__name__} {millions(parameters_of(model.network))}{gigaflops} · {origin}"
    rows.append(Row(plan.denoiser, what, work, per_image, 20 * parameters_of(model) / 1e6))
    if plan.until == "denoiser":
        return rows
    per_call = 0.0
    if plan.noisy_classifier is not None:
        fit = cfg.guidance.classifier.fit
        with build.shapes_only():
            net = build.noisy_classifier(cfg, ae, data)
        if cfg.dry_run:
            z, t = torch.empty(1, c, h, w, device="meta"), torch.zeros(1, dtype=torch.long, device="meta")
            per_call = flops_of(lambda: net(z, t))
        work, what = total_steps(fit) * fit.batch_size, f"of noisy latents {millions(parameters_of(net))}"
        per_image = 3 * per_call + (0 if plan.latents else costs.encode)
        rows.append(Row(plan.noisy_classifier, f"{what} · {number(work)} img", work, per_image))
    if plan.weak is not None and cfg.dry_run:
        with build.shapes_only():
            other = build.denoiser(plan.weak.cfg, ae, data)
        costs.weak = _count(ae, other, size).forward
    costs.classifier = per_call
    return [*rows, *_evaluation_rows(cfg, plan, size, costs)]


def _first_stage_rows(
    cfg: DictConfig, plan: Plan, ae: Any, shape: tuple[int, int, int], costs: Costs, count: int
) -> list[Row]:
    c, h, w = shape
    fit = cfg.ae.fit
    what = f"f=1 · pixels {h}x{w}x{c}"
    if parameters_of(ae):
        kind = type(ae.regulariser).__name__
        what = f"{kind} f={ae.f} c={c} · {millions(parameters_of(ae))} · latent {h}x{w}x{c}"
    both = costs.encode + costs.decode
    tuning = []
    if plan.decoder:
        budget = cfg.ae.decoder_fit
        count_ = total_steps(budget) * budget.batch_size
        tuning = [Row(plan.decoder, "decoder alone, latents frozen", count_, costs.encode + 3 * costs.decode)]
    work, per_image = (total_steps(fit) * fit.batch_size, 3 * both) if fit is not None else (0, 0.0)
    if cfg.ae.weights is not None:
        what += f" · imported from {Path(cfg.ae.weights).name}"
        work, per_image = (
            0 if cfg.ae.latent_scale.mode in imported.UNMEASURED else cfg.ae.latent_scale.images,
            costs.encode,
        )
    return [
        Row(plan.autoencoder, what, work, per_image),
        *tuning,
        Row(plan.reconstructions, f"{number(count)} val images · PSNR SSIM rFID R-IS bits", count, both),
    ]


def _evaluation_rows(cfg: DictConfig, plan: Plan, size: int, costs: Costs) -> list[Row]:
    sampler, n = build.sampler(cfg), cfg.eval.samples
    passes = float(sampler.evaluations)
    if sampler.guidance != 1:
        schedule = build.objective(cfg).schedule
        passes *= 1 + share_within(sampler.guidance_interval, schedule, sampler.times(schedule.T)[:-1])
    evaluations = steering.evaluations(cfg)
    asked = "" if evaluations == sampler.steps else f" ({number(evaluations)} evaluations)"
    per_sample = steering.flops(cfg, costs.forward, costs.weak, costs.classifier, costs.decode, passes)
    rows = []
    for e in plan.evaluations:
        what = (
            f"{number(n)} samples · {e.samples.name} {sampler.steps}{asked} · guidance {sampler.guidance:g}"
            f"{steering.words(cfg, plan.weak)}{f' · after {number(e.images)} img' if e.images else ''}"
        )
        rows.append(Row(e.samples, what, n, per_sample, n * size * size * 3 / 1e6))
        if plan.until != "samples":
            rows.append(Row(e.scores, " ".join(m.upper() for m in cfg.eval.metrics), n))
    return rows


def state_of(row: Row, store: Store) -> str:
    """done, resumes at n %, or will run."""
    if row.address.stage == "data":
        return "ready"
    if store.done(row.address) is not None:
        return "done"
    folder = store.folder(row.address)
    if last := Checkpoints(folder).last():
        return f"resumes at {int(last.name) / max(row.images, 1):.0%}"
    if parts := list(folder.glob("part-*.npy")) + list(folder.glob("moments-*.npy")):
        return f"resumes ({len(parts)} parts)"
    return "will run"


def machine_speed() -> float:
    """FLOP/s of a convolution on this machine, measured in a fraction of a second: enough for "about 4 min"."""
    import time

    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.randn(16, 64, 32, 32, device=device)
    conv = torch.nn.Conv2d(64, 64, 3, padding=1, device=device)
    flops = 2 * 16 * 64 * 64 * 9 * 32 * 32
    best = 0.0
    with torch.no_grad():
        for _ in range(6):
            start = time.perf_counter()
            conv(x)
            if device == "cuda":
                torch.cuda.synchronize()
            best = max(best, flops / (time.perf_counter() - start))
    return best


UTILISATION = (
    0.35  # of a bare convolution's speed that whole training steps reach on a CPU; a rule of thumb for "about"
)


def table(plan: Plan, store: Store, costs: bool) -> list[list[str]]:
    """Rows of text: stage, id, state, what, cost (cost only when asked: it times this machine)."""
    speed = machine_speed() * UTILISATION if costs else 0.0
    lines = [["stage", "id", "state", "what", "cost"] if costs else ["stage", "id", "state", "what"]]
    for row in plan.rows:
        state = state_of(row, store)
        line = [row.address.stage, row.address.id, state, row.what]
        if costs:
            parts = []
            if state not in ("done", "ready") and row.flops:
                parts.append(f"about {clock(row.images * row.flops / speed)}")
            if row.megabytes >= 0.1:
                parts.append(f"{row.megabytes:.3g} MB")
            line.append(" · ".join(parts))
        lines.append(line)
    return lines


def as_text(lines: list[list[str]]) -> str:
    """Columns aligned with two spaces between them."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        " " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
