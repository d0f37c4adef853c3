"""What the options `guidance.*` say: whether they fit, what of them decides the samples, and how they are called in plan and card.

The order in which guidance acts is `diffusion/stack.py`'s; the models and pictures are made in `makers/guidance.py`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ldmlab import build
from ldmlab.errors import ConfigError
from ldmlab.guidance.compose_denoise import share_within
from ldmlab.samplers import options
from ldmlab.store.files import read_json, sha256_file
from ldmlab.store.store import Address
from ldmlab.training.loop import images_at
from ldmlab.training.tracking import number


@dataclass(frozen=True)
class WeakModel:
    """The model that autoguidance moves away from: the weights after `images` training images."""

    cfg: DictConfig  # its configuration; this run's own when `folder` is None
    folder: Path | None  # the finished denoiser of another run; None: a snapshot of this run's
    id: str | None  # that denoiser's id
    name: str
    images: int


def labelled(cfg: DictConfig, conditions: Any) -> bool:
    """Whether samples are drawn for a class: the denoiser is told it, or a classifier pushes towards it."""
    return "label" in conditions.needs or cfg.guidance.classifier is not None


# ---- do they fit ---------------------------------------------------------------------------------------------------------


def check(cfg: DictConfig, data: Any) -> None:
    """Refuse guidance that this data or these options cannot give. Raises ConfigError.

    Whether another run's denoiser fits is found out by `weak_model`.
    """
    if cfg.guidance.classifier is not None:
        check_classifier(cfg, data)
    if cfg.guidance.auto is not None:
        check_auto(cfg)
    if cfg.guidance.image is not None:
        check_image(cfg, data)


def check_classifier(cfg: DictConfig, data: Any) -> None:
    """There are classes to tell apart; the network fits the latent; the batch divides among the processes."""
    if "label" not in data.fields or len(data.class_names) < 2:
        raise ConfigError(
            f"guidance=classifier learns to tell classes apart, and this data has {len(data.class_names)} "
            f"(fields: {', '.join(data.fields) or 'none'}). Use data with labels, or guidance=none."
        )
    fit, ranks = cfg.guidance.classifier.fit, build.ranks(cfg)
    if fit.batch_size % ranks:
        raise ConfigError(
            f"guidance.classifier.fit.batch_size={fit.batch_size} does not divide among {ranks} processes; "
            f"the nearest that does: {max(1, round(fit.batch_size / ranks)) * ranks}."
        )
    with build.shapes_only():
        build.noisy_classifier(cfg, build.autoencoder(cfg), data)
    check_interval(cfg, "classifier")


def check_interval(cfg: DictConfig, name: str) -> None:
    """The interval is one, and holds a time that is sampled."""
    path, interval = f"guidance.{name}.interval", cfg.guidance[name].interval
    options.check_interval(path, interval)
    schedule = build.objective(cfg).schedule
    visited = build.sampler(cfg).times(schedule.T)[:-1]
    if share_within(interval, schedule, visited) == 0:
        ratios = [schedule.at(t).sigma / max(schedule.at(t).alpha, 1e-9) for t in (visited[-1], visited[0])]
        raise ConfigError(
            f"{path}={list(interval)} holds none of the {len(visited)} times that are sampled: their noise-to-signal ratios go "
            f"from {ratios[0]:.3g} to {ratios[1]:.3g}. Widen it, or set it to null."
        )


def check_auto(cfg: DictConfig) -> None:
    """There is a weak model, and it is another one than that which is sampled."""
    auto = cfg.guidance.auto
    if auto.run is not None:
        return
    if cfg.ldm.fit is None:
        raise ConfigError(
            "guidance=autoguidance: ldm.weights is one state of a denoiser, and no earlier one is there to move away from. "
            "Name another run of the store: guidance.auto.run=<its name or id>."
        )
    kept = {1.0, *cfg.ldm.fit.snapshots}
    if auto.snapshot is None:
        raise ConfigError(
            "guidance=autoguidance needs a weaker model: guidance.auto.snapshot=<a fraction of ldm.fit.snapshots>, "
            "or guidance.auto.run=<name or id of a finished run>."
        )
    if auto.snapshot not in kept:
        raise ConfigError(
            f"guidance.auto.snapshot={auto.snapshot} is not among ldm.fit.snapshots={sorted(kept)}: no weights are kept there. "
            f"Use one of them that is below eval.at={list(cfg.eval.at)}."
        )
    if auto.snapshot >= min(cfg.eval.at):
        raise ConfigError(
            f"guidance.auto.snapshot={auto.snapshot} must be below eval.at={list(cfg.eval.at)}: the weak model is an earlier one. "
            f"Earlier than all of them: {sorted(f for f in kept if f < min(cfg.eval.at)) or 'none is kept'}."
        )


def check_image(cfg: DictConfig, data: Any) -> None:
    """The picture is there and is one; what is looked at fits the resolution."""
    from ldmlab.data.transforms import read_rgb

    path = Path(cfg.guidance.image.file)
    if not path.is_file():
        raise ConfigError(f"guidance.image.file={path}: no such file. Give the path of a picture.")
    try:
        read_rgb(path)
    except Exception as error:  # Pillow raises many kinds
        raise ConfigError(f"guidance.image.file={path} is not a picture that can be read ({error}).") from None
    seen = build.observation(cfg)
    if seen is not None:
        seen.check(data.resolution)
    check_interval(cfg, "image")


# ---- the weak model ------------------------------------------------------------------------------------------------------


def weak_model(cfg: DictConfig, store_root: Path, denoiser: Address, conditions: Any) -> WeakModel | None:
    """The weak model of autoguidance; None without one.

    Args:
        denoiser: this run's; the other must be another, trained on the same (`latents`, or `autoencoder` and `data`).
        conditions: this run's conditioner.

    Raises ConfigError when the other run does not exist, is not finished or fits not.
    """
    auto = cfg.guidance.auto
    if auto is None:
        return None
    if auto.run is None:
        return WeakModel(cfg, None, None, f"snapshot {auto.snapshot:g}", images_at(cfg.ldm.fit, auto.snapshot))
    where = f"guidance.auto.run={auto.run}"
    run = find_run(store_root, str(auto.run))
    record = read_json(run / "run.json")
    stage = next((s for s in record["stages"] if s["stage"] == "denoiser"), None)
    if stage is None or not (run / stage["folder"] / "done.json").is_file():
        raise ConfigError(f"{where}: {run.name} has no finished denoiser. Finish it: {record['command']}")
    if stage["upstream"] != denoiser.upstream:
        raise ConfigError(
            f"{where}: its denoiser was trained on {said(stage['upstream'])}, this one on {said(denoiser.upstream)}. "
            "Both must share first stage and data; choose a run with the same ae= and data=."
        )
    other = OmegaConf.create(record["config"])
    assert isinstance(other, DictConfig)
    check_other(cfg, other, where, conditions)
    fraction = 1.0 if auto.snapshot is None else auto.snapshot
    fit = other.ldm.fit  # null for an imported denoiser, which is one state
    kept = {1.0, *(fit.snapshots if fit is not None else [])}
    if fraction not in kept:
        raise ConfigError(f"guidance.auto.snapshot={fraction}: that run keeps weights at {sorted(kept)}.")
    if stage["id"] == denoiser.id and fraction >= min(cfg.eval.at):
        raise ConfigError(
            f"{where} is this denoiser itself, which cannot guide itself. Choose another run, or one of its earlier snapshots: "
            "guidance.auto.snapshot=… below eval.at, and no guidance.auto.run."
        )
    folder = (run / stage["folder"]).resolve()
    at = 0 if fit is None else images_at(fit, fraction)
    folder = folder if fraction == 1 else folder / "snapshots" / f"{at:012d}"
    if cfg.eval.weights == "ema" and not (folder / "ema.safetensors").is_file():
        raise ConfigError(f"{where} keeps no averaged weights. Use eval.weights=raw, or another run.")
    return WeakModel(other, folder, stage["id"], f"{stage['name']}-{stage['id'][:4]}", at)


def check_other(cfg: DictConfig, other: DictConfig, where: str, conditions: Any) -> None:
    """The other denoiser answers the same question: same noise levels, same kind of condition."""
    mine, theirs = (OmegaConf.to_container(c.objective.schedule, resolve=True) for c in (cfg, other))
    if mine != theirs:
        raise ConfigError(
            f"{where} has another objective.schedule: its times are other noise levels. Choose a run with the same one."
        )
    if cfg.cond.conditioner["_target_"] != other.cond.conditioner["_target_"]:
        raise ConfigError(
            f"{where} was trained with another condition ({other.cond.conditioner['_target_'].rpartition('.')[2]}) than this "
            f"run ({cfg.cond.conditioner['_target_'].rpartition('.')[2]}). Choose a run with the same cond=."
        )
    if cfg.sampler.guidance != 1 and conditions.needs and other.cond.drop == 0:
        raise ConfigError(
            f"{where} was trained with cond.drop=0 and knows no null condition, which sampler.guidance={cfg.sampler.guidance} "
            "asks of both models. Use sampler.guidance=1, or another run."
        )


def find_run(store_root: Path, wanted: str) -> Path:
    """The folder of a run by its name, its id, or both. Raises ConfigError unless there is exactly one."""
    runs = sorted(p.parent for p in (store_root / "runs").glob("*/run.json"))
    found = [
        p
        for p in runs
        if wanted in (p.name, *(part for part in (p.name.rpartition("-")[0], p.name.rpartition("-")[2])))
    ]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(p.name for p in (found or runs)[:8]) or "none yet"
    what = f"is {len(found)} runs; give the id" if found else "is no run of this store"
    raise ConfigError(f"guidance.auto.run={wanted} {what}. There: {listed}.")


def said(ids: dict[str, str]) -> str:
    return " and ".join(f"{stage} {id_}" for stage, id_ in ids.items())


# ---- what decides the samples --------------------------------------------------------------------------------------------


def sample_options(cfg: DictConfig, weak: WeakModel | None) -> dict[str, Any]:
    """The part of a samples stage's options; empty without guidance, so that samples made before it keep their address."""
    steer, found = cfg.guidance, dict[str, Any]()
    if weak is not None:
        found["auto"] = {"scale": steer.auto.scale, "snapshot": weak.images}
    if steer.classifier is not None:
        found["classifier"] = {"scale": steer.classifier.scale, **_interval(steer.classifier)}
    if steer.image is not None:
        transform = OmegaConf.to_container(steer.image)["transform"]  # type: ignore[call-overload,index]
        picture = sha256_file(Path(steer.image.file))
        found["image"] = {
            "scale": steer.image.scale,
            "picture": picture,
            "transform": transform,
            **_interval(steer.image),
        }
    return {"guidance": found} if found else {}


def _interval(node: DictConfig) -> dict[str, Any]:
    return {} if node.interval is None else {"interval": [float(ratio) for ratio in node.interval]}


def classifier_options(cfg: DictConfig) -> dict[str, Any]:
    """Everything of a noisy classifier's address but what it stands on. Of the objective: schedule and distribution of t."""
    steer, objective = cfg.guidance.classifier, cfg.objective
    own = {"network": steer.network, "fit": steer.fit, "seed": cfg.seed, "schedule": objective.schedule}
    own |= {"times": objective.times} if objective.times is not None else {}
    return own | ({"stratified": True} if objective.stratified else {})


def card(cfg: DictConfig, weak: WeakModel | None, classifier_id: str | None) -> dict[str, Any]:
    """Fields of the protocol card, only those of guidance that is active."""
    steer, found = cfg.guidance, dict[str, Any]()
    own = sample_options(cfg, weak).get("guidance", {})
    if weak is not None:
        found["autoguidance"] = {"scale": steer.auto.scale, "weak": weak.id or "own snapshot", "images": weak.images}
    if steer.classifier is not None:
        found["classifier_guidance"] = {**own["classifier"], "classifier": classifier_id}
    if steer.image is not None:
        found["image_guidance"] = {**own["image"], "picture": own["image"]["picture"][:12]}
    return found


# ---- words and work ------------------------------------------------------------------------------------------------------


def words(cfg: DictConfig, weak: WeakModel | None) -> str:
    """Behind "guidance 1" in a row of the plan; empty without guidance."""
    steer, parts = cfg.guidance, []
    if weak is not None:
        parts.append(
            f"autoguidance {steer.auto.scale:g} ({weak.name}{f', {number(weak.images)} img' if weak.images else ''})"
        )
    if steer.classifier is not None:
        parts.append(f"classifier {steer.classifier.scale:g}")
    if steer.image is not None:
        parts.append(f"image {steer.image.scale:g} ({Path(steer.image.file).name})")
    return "".join(f" · {part}" for part in parts)


def evaluations(cfg: DictConfig) -> int:
    """Of a denoiser, per sample: the guided pair counts as one, the weak model of autoguidance as another."""
    asked: int = build.sampler(cfg).evaluations
    return asked * (1 if cfg.guidance.auto is None else 2)


def flops(cfg: DictConfig, forward: float, weak: float, classifier: float, decode: float, passes: float) -> float:
    """Floating-point operations of one sample, decoding included.

    forward, weak, classifier, decode: of one forward pass of each. passes: of the denoiser, the null half counted. A gradient
    with respect to the input alone costs another forward pass.
    """
    steer, asked = cfg.guidance, build.sampler(cfg).evaluations
    through = 2.0 if steer.image is not None else 1.0
    total = passes * through * (forward + (weak if steer.auto is not None else 0.0)) + decode
    total += 2 * asked * classifier if steer.classifier is not None else 0.0
    return total + (2 * asked * decode if steer.image is not None else 0.0)
