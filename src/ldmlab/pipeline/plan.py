"""What a command will do: the stages of one run and their addresses. Builds nothing but meta tensors; `forecast.py` says what
each one is and costs.

Each stage's address is a function of its own completed options and of the ids it stands on (architecture §2); this file is the
only place that says which option belongs to which stage. `VERSIONS` grows when a stage's code changes what it computes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ldmlab import build
from ldmlab.interop import import_denoiser as imported_denoiser
from ldmlab.interop import import_first_stage as imported
from ldmlab.metrics.features import Extractor
from ldmlab.pipeline import steering
from ldmlab.store.store import Address
from ldmlab.training.loop import images_at

VERSIONS = {
    "data": 1, "extractor": 1, "autoencoder": 1, "decoder": 1, "reconstructions": 3, "latents": 1, "denoiser": 1, "samples": 1,
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
    """A config node as plain data for an id, without options that came later than most runs and say nothing."""
    return _spoken(OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node)


def _spoken(plain: Any) -> Any:
    if not isinstance(plain, dict):
        return plain
    silent = {("cooldown", "warmup"): 0, ("start", "codes"): "uniform"}  # (option, its neighbour): what says nothing
    return {
        k: _spoken(v)
        for k, v in plain.items()
        if not any(k == o and n in plain and v == s for (o, n), s in silent.items())
    }


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
    learnt_from = {"latents": latents} if latents else {"autoencoder": autoencoder, "data": data_at}
    trained = {
        "ldm": _denoiser_options(cfg), "cond": cond, "objective": _objective_options(cfg), "seed": cfg.seed,
        **({} if latents else tile),
    }  # fmt: skip
    stands_on = learnt_from
    if cfg.ldm.weights is not None:  # nothing of it is learnt from this data
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
        noisy_classifier = address("noisy_classifier", choices["ae"], learns, **learnt_from)
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
    return Plan(
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
    from ldmlab.data.latent_cache import unsupported_fields
    from ldmlab.errors import ConfigError

    identity = cfg.ae.network["_target_"].endswith(".IdentityNetwork")
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
    for name in ("train", "decoder_fit", "tile", "recipe"):  # they begin where this stage ends
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
