"""From words on the command line to a completed configuration; everything wrong is said here, before anything is built.

Net 1: `RunConfig`, a typed schema for plain options (Hydra checks names and types while composing).
Net 2: `complete`, which checks every node with a `_target_` against its constructor and writes the defaults out.
Net 3, whether the parts fit each other, is in `build.py`.
"""

import difflib
import functools
import inspect
import os
import re
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ldmlab.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]
CONF = ROOT / "conf"
STAGES = ("autoencoder", "latents", "denoiser", "samples", "scores", "report")


@dataclass
class Fit:
    """How long and how one network is trained. Durations are in images; batch size is the total over all ranks."""

    images: int = MISSING
    batch_size: int = MISSING
    lr: float = MISSING  # final learning rate; never multiplied by anything
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    weight_decay: float = 0.0
    clip: float | None = None  # gradient norm
    precision: str = "fp32"  # fp32 | bf16 (autocast; weights and averages stay fp32)
    ema: float | None = None  # decay of the averaged copy, warm-up min(ema, (1+n)/(10+n)) after n steps
    warmup: int = 0  # images over which the learning rate rises linearly
    cooldown: int = 0  # last images over which it falls linearly to 0
    snapshots: list[float] = field(default_factory=list)  # fractions of `images` at which weights are kept


@dataclass
class LatentScale:
    """How the latents are brought to unit variance: measured over `images` training images after training, or told."""

    mode: str = (
        "global"  # global | per_channel | first_batch_std (the paper's code) | none | given | stored (in ae.weights)
    )
    images: int = 2048
    scale: Any = None  # mode=given: z = (raw - shift) * scale; a number, or a list of one per latent channel
    shift: Any = None  # mode=given; null is 0


@dataclass
class AE:
    """The first stage: a network, a regulariser, a loss and a training budget (`fit: null` = nothing to train)."""

    network: Any = MISSING
    regulariser: Any = MISSING
    loss: Any = None
    latent_scale: LatentScale = field(default_factory=LatentScale)
    fit: Fit | None = None
    train: str = "all"  # all | decoder: the finished stage's decoder learns on, its latents stay what they are
    tile: int | None = (
        None  # pixels a side: larger images go through in overlapping tiles (memory; changes results a little)
    )
    decoder_fit: Fit | None = None  # budget of train=decoder
    weights: str | None = None  # a file or folder of trained weights; then loss and fit are null: nothing is trained


@dataclass
class Budget:
    """What the denoiser may cost. One target at most; it takes the place of `ldm.network.width` (ldmlab.pipeline.budget)."""

    parameters: float | None = None  # of the network
    flops_per_image: float | None = None  # of training: three forward passes
    flops_per_step: float | None = None  # the same for a whole batch
    tolerance: float = 0.1  # how far, relatively, the nearest width may be off


@dataclass
class LDM:
    """The denoiser: a network and its training budget."""

    network: Any = MISSING
    budget: Budget = field(default_factory=Budget)
    fit: Fit | None = field(default_factory=Fit)
    weights: str | None = None  # a file or folder of trained weights; then fit is null: nothing is trained
    power_ema: list[float] = field(
        default_factory=list
    )  # relative widths, [0.05, 0.1]: for eval.ema_width (2312.02696)


@dataclass
class Conditioning:
    """What the denoiser is told; `label` is a wish at sampling time and not part of the trained network."""

    conditioner: Any = MISSING
    drop: float = 0.0  # probability per example of training without the condition
    label: Any = None


@dataclass
class Latents:
    """The cache of encoded training images."""

    cache: str = "auto"  # auto: when the data set is finite and augmented by flips at most | always | never
    dtype: str = "float16"  # float16 | float32
    verify: bool = False  # encode 64 images again and compare with the cache's certificate


@dataclass
class ClassifierGuidance:
    """Guidance by a classifier of noisy latents, trained in a stage of its own."""

    scale: float = MISSING
    interval: list[float] | None = None  # of sigma / alpha where it pushes; null: everywhere
    network: Any = MISSING
    fit: Fit = field(default_factory=Fit)


@dataclass
class AutoGuidance:
    """Guidance away from a weaker model: this denoiser's snapshot, or the denoiser of another run."""

    scale: float = MISSING
    snapshot: float | None = None
    run: str | None = None


@dataclass
class ImageGuidance:
    """Guidance towards a picture: what of it is looked at is `transform`; null is all of it."""

    file: str = MISSING
    scale: float = MISSING
    interval: list[float] | None = None  # of sigma / alpha where it pulls; null: everywhere
    transform: Any = None


@dataclass
class Guidance:
    """What steers sampling beside the sampler's own options; null is not there. `diffusion/stack.py` has their order."""

    classifier: ClassifierGuidance | None = None
    auto: AutoGuidance | None = None
    image: ImageGuidance | None = None


@dataclass
class Reference:
    split: str = "train"
    images: int | None = None  # null: the whole split


@dataclass
class Eval:
    """The evaluation protocol; everything here is on the card that comes with each number, but `batch_size`."""

    extractor: Any = MISSING
    extractor_fit: Fit | None = None  # budget of an extractor that is trained here (shapes)
    metrics: list[str] = field(default_factory=lambda: ["fid", "is", "kid", "precision", "recall"])
    samples: int = 5000
    label_mode: str = "uniform"  # uniform | random | from_data
    reference: Reference = field(default_factory=Reference)
    bootstrap: int = 200
    seed: int = 0
    batch_size: int = 64
    weights: str = "ema"  # ema | raw
    ema_width: float | None = None  # an average of this relative width, made from ldm.power_ema; null: ldm.fit.ema's
    at: list[float] = field(default_factory=lambda: [1.0])  # fractions of training whose snapshots are scored
    reconstructions: int = 1000  # val images for PSNR, SSIM, rFID, at most


@dataclass
class Runtime:
    """How a result is computed. Nothing here changes what is computed, nothing here is in an id."""

    device: str = "auto"  # auto | cpu | cuda
    processes: int = 1  # ranks that this command starts itself; under torchrun leave it at 1
    micro_batch: int | None = None  # images per forward pass and rank at most; the rest is accumulated
    workers: int = 0  # loader processes per rank
    threads: int | None = None  # CPU threads per rank; null: cores / ranks
    checkpoint_seconds: float = 300.0
    log_seconds: float = 10.0
    channels_last: bool = False
    compile: bool = False


@dataclass
class Tracking:
    """Where numbers go beside metrics.jsonl, which is always written."""

    wandb: str | None = None  # null | offline | online
    project: str = "ldmlab"
    entity: str | None = None


@dataclass
class Prepare:
    """prepare.py: how pictures are packed."""

    images_per_shard: int = 1000
    format: str = "jpg"  # jpg | png | webp
    quality: int = 95
    licence: str = ""


@dataclass
class Bench:
    """bench.py: how long is measured and, for the comparisons, of what."""

    rounds: int = 7  # repetitions that count, contenders in turn; one more warms up
    batch_size: int | None = None  # null: the composition's or the shape's own
    seconds: float = 60.0  # of work that is counted but not timed when one step would take longer
    shapes: list[str] = field(default_factory=lambda: ["tiny", "f8", "f4"])  # compare=unet
    variants: list[str] = field(default_factory=lambda: ["train", "train_bf16", "ddim", "guided"])  # compare=unet
    family: list[str] = field(default_factory=list)  # compare=family: options of ae; []: all that have weights


@dataclass
class RunConfig:
    seed: int = 0
    store: str = "store"
    until: str = "report"
    dry_run: bool = False
    n: int = 64  # sample.py: how many images
    out: str | None = None  # prepare.py, sample.py, export.py: a folder for the files; bench.py: a file of JSON lines
    to: str | None = None  # export.py: diffusers | compvis
    part: str = "ae"  # export.py: ae (the first stage) | ldm (the denoiser and all it needs)
    verify: bool | None = (
        None  # false: use results that were altered; prepare.py, true: check a data set instead of making one
    )
    runs: str | None = None  # report.py: "all", or a glob over run names
    compare: str | None = None  # bench.py: CHOICES names the comparisons; null: the composition itself
    study: str | None = None  # report.py: the runs that a sweep has made, by its name in sweeps/
    data: Any = MISSING
    ae: AE = MISSING
    ldm: LDM = MISSING
    cond: Conditioning = MISSING
    objective: Any = MISSING
    sampler: Any = MISSING
    guidance: Guidance = field(default_factory=Guidance)
    stage: Any = None  # stages from outside the package: {name: part}
    eval: Eval = MISSING
    latents: Latents = field(default_factory=Latents)
    runtime: Runtime = field(default_factory=Runtime)
    tracking: Tracking = field(default_factory=Tracking)
    prepare: Prepare = field(default_factory=Prepare)
    bench: Bench = field(default_factory=Bench)
    where_present: Any = None  # {path: value}, set where the composition has that path and the command line does not


CHOICES: dict[str, tuple[str, ...]] = {
    "until": STAGES,
    "ae.train": ("all", "decoder"),
    "to": ("diffusers", "compvis"),
    "part": ("ae", "ldm"),
    "ae.latent_scale.mode": ("global", "per_channel", "first_batch_std", "none", "given", "stored"),
    "ae.fit.precision": ("fp32", "bf16"),
    "ldm.fit.precision": ("fp32", "bf16"),
    "eval.extractor_fit.precision": ("fp32", "bf16"),
    "guidance.classifier.fit.precision": ("fp32", "bf16"),
    "latents.cache": ("auto", "always", "never"),
    "latents.dtype": ("float16", "float32"),
    "eval.label_mode": ("uniform", "random", "from_data"),
    "eval.weights": ("ema", "raw"),
    "eval.reference.split": ("train", "val", "test"),
    "runtime.device": ("auto", "cpu", "cuda"),
    "prepare.format": ("jpg", "png", "webp"),
    "compare": ("unet", "codebook", "autoencoder", "family", "tiles", "compression", "attention", "keys"),
    "tracking.wandb": ("offline", "online"),
}
"""Words that an option takes. OmegaConf has no Literal; one table here keeps them in one place."""

POSITIVE = [
    "n",
    "bench.rounds",
    "bench.batch_size",
    "bench.seconds",
    "eval.samples",
    "eval.batch_size",
    "eval.reconstructions",
    "eval.reference.images",
    "eval.bootstrap",
    "ae.latent_scale.images",
    "ae.fit.images",
    "ae.fit.batch_size",
    "ae.fit.lr",
    "ae.tile",
    "ae.decoder_fit.images",
    "ae.decoder_fit.batch_size",
    "ae.decoder_fit.lr",
    "ldm.fit.images",
    "ldm.fit.batch_size",
    "ldm.fit.lr",
    "ldm.budget.parameters",
    "ldm.budget.flops_per_image",
    "ldm.budget.flops_per_step",
    "ldm.budget.tolerance",
    "eval.extractor_fit.images",
    "eval.extractor_fit.batch_size",
    "eval.extractor_fit.lr",
    "guidance.classifier.scale",
    "guidance.classifier.fit.images",
    "guidance.classifier.fit.batch_size",
    "guidance.classifier.fit.lr",
    "guidance.auto.scale",
    "guidance.image.scale",
    "runtime.processes",
    "runtime.micro_batch",
    "runtime.threads",
    "runtime.checkpoint_seconds",
    "runtime.log_seconds",
]
FRACTIONS = [
    "cond.drop",
    "ae.fit.snapshots",
    "ldm.fit.snapshots",
    "eval.at",
    "ae.fit.ema",
    "ldm.fit.ema",
    "guidance.auto.snapshot",
    "guidance.classifier.fit.ema",
]


GIVEN: dict[str, tuple[str, ...]] = {
    "data": ("split", "cache"),
    "ae.network": ("channels_in",),
    "ae.regulariser": ("c",),
    "ae.loss.perceptual": ("classifier",),
    "ldm.network": ("in_channels", "out_channels", "context_dim", "vector_dim", "latent_size"),
    "guidance.classifier.network": ("in_channels", "n_classes", "latent_size"),
    "cond.conditioner": ("n_classes", "class_names", "latent_shape", "resolution", "vocabulary", "first_stage"),
    "objective.schedule": ("latent_size",),
}
"""Constructor arguments that follow from other parts. `build.py` passes them; as options they would be second truths.

What `cond.conditioner` is given, its parts are given too."""

_PART = re.compile(r"(?<=^cond\.conditioner)(\.parts\.\d+)+$")


class Composed(NamedTuple):
    """A checked configuration, completed, and the names that were chosen (`{"ae": "kl_f8", …}`) for titles."""

    cfg: DictConfig
    choices: dict[str, str]


def register_schema() -> None:
    """Make `RunConfig` and the group `sweeps/` at the root known to Hydra; harmless when done twice.

    (The root itself as a search path would make a group of every folder in it: of `store/`, after the first run.)
    """
    ConfigStore.instance().store(name="base_schema", node=RunConfig)
    for file in (ROOT / "sweeps").glob("*.yaml"):
        ConfigStore.instance().store(group="sweeps", name=file.stem, node=OmegaConf.load(file), package="_global_")


def load(overrides: Sequence[str]) -> Composed:
    """Compose, check and complete the configuration that `overrides` describe.

    Raises ConfigError for anything that a user may have mistyped.
    """
    register_schema()
    cfg, choices = _compose(overrides)
    return finish(cfg, choices, overrides)


def finish(cfg: DictConfig, choices: dict[str, str], overrides: Sequence[str]) -> Composed:
    """The checks after composition: keys behind `+`, `where_present`, parts, words and ranges."""
    _refuse_unknown(cfg)
    typed = {override.split("=")[0].lstrip("+~").replace("/", ".") for override in overrides}
    plain = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
    assert isinstance(plain, DictConfig)
    for path, value in (plain.where_present or {}).items():
        said = any(word == path or word.startswith(f"{path}.") for word in typed)  # the path, a part of it, its group
        if not said and _has(plain, path):
            OmegaConf.update(plain, path, value, merge=False)
    plain.where_present = None
    if not OmegaConf.is_missing(plain, "ae") and plain.ae.weights is not None:
        plain.ae.fit = None  # an imported stage is not trained; its decoder may learn on
        plain.ae.loss = plain.ae.loss if plain.ae.train == "decoder" else None
    if not OmegaConf.is_missing(plain, "ldm") and plain.ldm.weights is not None:
        plain.ldm.fit = None
        plain.eval.at = plain.eval.at if "eval.at" in typed else [1.0]
    _complete_node(plain, "", choices)
    _check_values(plain)
    _check_width(plain, typed)
    return Composed(plain, choices)


def _check_width(cfg: DictConfig, typed: set[str]) -> None:
    """A budget of the denoiser decides its width: one of the two may be typed. Raises ConfigError."""
    if "ldm.network.width" not in typed or OmegaConf.is_missing(cfg, "ldm"):
        return
    budget = {name: value for name, value in cfg.ldm.budget.items() if name != "tolerance" and value is not None}
    for name, value in budget.items():
        raise ConfigError(
            f"ldm.network.width={cfg.ldm.network.width} and ldm.budget.{name}={value:g} are both given, and the budget chooses "
            f"the width. Leave the width out, or set ldm.budget.{name}=null."
        )


# ---- net 1: composition, with Hydra's messages in our voice --------------------------------------------------------------


def _compose(overrides: Sequence[str]) -> tuple[DictConfig, dict[str, str]]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        try:
            cfg = compose("config", overrides=list(overrides), return_hydra_config=True)
        except (HydraException, OmegaConfBaseException) as error:
            raise _translate(error, list(overrides)) from None
        except AssertionError:  # OmegaConf's answer to an option below a node that is null
            raise _below_null(list(overrides)) from None
        if cfg.hydra.sweeper.get("params") and "LDMLAB_SWEEP_CHILD" not in os.environ:
            sweep = cfg.hydra.runtime.choices.get("sweeps")
            raise ConfigError(
                f"sweeps={sweep} is a sweep of several runs and needs -m: python src/train.py -m sweeps={sweep}"
            )
        choices = {
            k: str(v) for k, v in cfg.hydra.runtime.choices.items() if not k.startswith("hydra") and v is not None
        }
        OmegaConf.set_struct(cfg, False)
        del cfg["hydra"]
        return cfg, choices


def _translate(error: Exception, overrides: list[str]) -> ConfigError:
    text = _chain_text(error)
    if found := re.search(r"Could not (?:find|load) '([\w./-]+)'", text):
        group, _, option = found[1].rpartition("/")
        allowed = group_options(group)
        if not group or (not allowed and not (CONF / group).is_dir()):
            return ConfigError(f"{found[1]}: no such file in conf/.")
        return ConfigError(
            f"{group}={option}: no such option.{_nearest(option, allowed)} {group} takes: {_words(allowed)}."
        )
    if found := re.search(r"Could not override '([\w./@-]+)'", text):
        return _unknown_key(found[1], overrides, text)
    if found := re.search(r"full_key: ([\w.\[\]]+)", text):
        reason = text.strip().splitlines()[0].removeprefix("Error merging override ")
        if unknown := re.search(r"Key '(\w+)' not in '(\w+)'", text):
            where = re.search(r"In '([\w/]+)'", text)
            schema = globals().get(unknown[2])
            allowed = [f.name for f in fields(schema)] if schema and is_dataclass(schema) else []
            place = f" Set in conf/{where[1]}.yaml{_line_of(CONF / f'{where[1]}.yaml', unknown[1])}." if where else ""
            return ConfigError(
                f"{found[1]}: no such option.{_nearest(unknown[1], allowed)} "
                f"{found[1].rpartition('.')[0] or 'The top level'} takes: {_words(allowed)}.{place}"
            )
        value = re.search(r"Value '(.*?)'.*could not be converted to (\w+)", text, re.S)
        if value:
            kind = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}.get(
                value[2], value[2]
            )
            return ConfigError(f"{found[1]} must be {kind}; got {value[1]!r}.{_type_hint(found[1])}")
        return ConfigError(f"{found[1]}: {reason}")
    if found := re.search(r"Error parsing override '(.*?)'", text):
        return ConfigError(
            f"{found[1]}: not readable as an option. Write path=value, and quote values with commas or spaces."
        )
    if "no match in the defaults list" in text.lower() or "Could not find match" in text:
        word = re.search(r"(?:override|match for) '?([\w/@.=-]+)'?", text)
        return ConfigError(f"{word[1] if word else text}: no such group. Groups: {_words(groups())}.")
    return ConfigError(" ".join(text.split()))


def _chain_text(error: BaseException) -> str:
    parts, seen = [], error
    while seen is not None:
        if str(seen) not in parts:
            parts.append(str(seen))
        seen = seen.__cause__ or seen.__context__  # type: ignore[assignment]
    return "\n".join(parts)


def _unknown_key(path: str, overrides: list[str], text: str) -> ConfigError:
    """`path` is not in the tree; say what is. The tree is composed again without the words that failed."""
    if "no match in the defaults list" in text:
        return ConfigError(f"{path}: no such group.{_nearest(path, groups())} Groups: {_words(groups())}.")
    rest = [o for o in overrides if o.split("=")[0].lstrip("+~") != path]
    try:
        with_rest = compose("config", overrides=rest)
    except (HydraException, OmegaConfBaseException) as error:
        return _translate(error, rest)
    except AssertionError:
        return _below_null(rest)
    parent, names = "", path.split(".")
    node: Any = with_rest
    for name in names:
        if not isinstance(node, DictConfig) or name not in node:
            break
        parent, node = f"{parent}.{name}".lstrip("."), node[name]
    if not isinstance(node, DictConfig):
        return ConfigError(f"{path}: {parent} is {node!r} here and has no options of its own.")
    unknown = path.removeprefix(parent).strip(".").split(".")[0]
    allowed = [str(k) for k in node if not str(k).startswith("_")]
    near = _deeper(unknown, node, parent) or _nearest(unknown, allowed)
    return ConfigError(f"{path}: no such option.{near} {parent or 'The top level'} takes: {_words(allowed)}.")


def _below_null(overrides: list[str]) -> ConfigError:
    """An option of a part that this composition does not have, such as `ae.fit.images` with ae=identity."""
    chosen = compose("config", overrides=[o for o in overrides if "." not in o.split("=")[0]])
    for path in (o.split("=")[0].lstrip("+~") for o in overrides):
        node: Any = chosen
        for depth, name in enumerate(path.split(".")):
            if node is None:
                parent = ".".join(path.split(".")[:depth])
                return ConfigError(f"{path}: {parent} is null here, so it has no options. Leave {path} out.")
            node = node[name] if isinstance(node, DictConfig) and name in node else None
    return ConfigError("an option was given below a node that is null here. Leave it out.")


def _deeper(word: str, node: DictConfig, path: str) -> str:
    """The nearest option here or further down: `ae.wieght` meant `ae.regulariser.weight`."""
    found: dict[str, str] = {}

    def walk(inner: DictConfig, prefix: str) -> None:
        for key in inner:
            name = f"{prefix}.{key!s}".lstrip(".")
            if not str(key).startswith("_") and key != word:
                found.setdefault(str(key), name)
            if not OmegaConf.is_missing(inner, key) and isinstance(inner[key], DictConfig):
                walk(inner[key], name)

    walk(node, path)
    near = difflib.get_close_matches(word, found, n=1, cutoff=0.6)
    return f" Did you mean '{near[0] if near[0] in node else found[near[0]]}'?" if near else ""


def _type_hint(path: str) -> str:
    return " Durations are whole numbers of images." if path.endswith(".images") else ""


def groups() -> list[str]:
    """The configuration groups a user can choose from."""
    return [*sorted(p.name for p in CONF.iterdir() if p.is_dir() and p.name != "hydra"), "sweeps"]


def group_options(group: str) -> list[str]:
    """The options of a group (`ae`, `ae/loss`, `sweeps`), helpers with a leading underscore left out."""
    folder = ROOT / "sweeps" if group == "sweeps" else CONF / group
    return sorted((p.stem for p in folder.glob("*.yaml") if not p.name.startswith("_")), key=_natural)


def _natural(text: str) -> list[Any]:
    return [int(t) if t.isdigit() else t for t in re.split(r"(\d+)", text)]


def _refuse_unknown(cfg: DictConfig, path: str = "") -> None:
    """Keys that arrived behind `+` in a typed node: Hydra accepts them, nothing would read them."""
    schema = OmegaConf.get_type(cfg)
    names = [f.name for f in fields(schema)] if is_dataclass(schema) else None
    for key in cfg:
        name = str(key)
        if names is not None and name not in names:
            near = _deeper(name, cfg, path.rstrip(".")) or _nearest(name, names)
            raise ConfigError(
                f"{path}{name}: no such option.{near} {path.rstrip('.') or 'The top level'} takes: {_words(names)}."
            )
        if not OmegaConf.is_missing(cfg, key) and not OmegaConf.is_interpolation(cfg, name):
            node = cfg._get_node(key)
            if isinstance(node, DictConfig) and not node._is_none():
                _refuse_unknown(node, f"{path}{name}.")


def _has(cfg: DictConfig, path: str) -> bool:
    node: Any = cfg
    for name in path.split("."):
        if not isinstance(node, DictConfig) or name not in node:
            return False
        node = node[name]
    return True


# ---- net 2: parts against their signatures -------------------------------------------------------------------------------


def _complete_node(node: Any, path: str, choices: dict[str, str]) -> None:
    if not isinstance(node, (DictConfig, ListConfig)) or node._is_none():
        return
    if isinstance(node, DictConfig):
        for key in node:
            if OmegaConf.is_missing(node, key):
                where = f"{path}.{key!s}".lstrip(".")
                raise ConfigError(f"{where} is not set. Give it as {where}=… or choose a group option that sets it.")
        if "_target_" in node:
            _complete_part(node, path, choices)
    keys: Iterable[Any] = list(node) if isinstance(node, DictConfig) else range(len(node))
    for key in keys:
        _complete_node(node[key], f"{path}.{key}".lstrip("."), choices)


def _complete_part(part: DictConfig, path: str, choices: dict[str, str]) -> None:
    """Check one part's options against the constructor that takes them, and write its defaults out."""
    name = part["_target_"]
    takes, hints = _signature(name, path)
    takes = {key: parameter for key, parameter in takes.items() if key not in GIVEN.get(_PART.sub("", path), ())}
    for key in [str(k) for k in part if not str(k).startswith("_")]:
        if key not in takes:
            offered = [n for n in takes if n in part or takes[n].default is not inspect.Parameter.empty]
            raise ConfigError(
                f"{path}.{key}: no such option.{_nearest(key, offered)} {name} takes: {_words(offered)}."
                f"{_place(path, key, choices)}"
            )
        if (wrong := misfit(part[key], hints.get(key))) is not None:
            raise ConfigError(f"{path}.{key} must be {wrong}; got {_say(part[key])}.{_place(path, key, choices)}")
    for key, parameter in takes.items():
        if key in part:
            continue
        if parameter.default is not inspect.Parameter.empty:
            default = parameter.default
            if default is None or isinstance(default, (bool, int, float, str)):
                part[key] = default
            elif isinstance(default, (list, tuple)):
                part[key] = list(default)
        elif not part.get("_partial_", False):
            raise ConfigError(f"{path}.{key} is not set, and {name} has no default for it. Give it as {path}.{key}=…")


@functools.cache
def _signature(target: str, path: str) -> tuple[dict[str, inspect.Parameter], dict[str, Any]]:
    from hydra.utils import get_object

    try:
        found: Callable[..., Any] = get_object(target)
    except Exception as error:
        raise ConfigError(f"{path}._target_={target}: cannot be imported ({error}).") from None
    if inspect.isclass(found) and _first_init(found).__module__.startswith("torch.nn"):
        return {}, {}  # a module without a constructor of its own has no options
    parameters = dict(inspect.signature(found).parameters)
    for parameter in parameters.values():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            raise ConfigError(
                f"{path}._target_={target} takes **{parameter.name}, so a misspelling could not be found. "
                "Wrap it in a function with a closed signature."
            )
    init = found.__init__ if inspect.isclass(found) else found
    return parameters, typing.get_type_hints(init)


def _first_init(cls: type) -> type:
    """The class whose constructor `cls` uses."""
    return next(c for c in cls.__mro__ if "__init__" in vars(c))


def misfit(value: Any, hint: Any) -> str | None:
    """None when `value` fits the annotation, else the words for what it must be. Types we do not know are trusted."""
    if hint is None or hint is Any:
        return None
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        wrong = [misfit(value, arg) for arg in args if arg is not type(None)]
        if (value is None and type(None) in args) or None in wrong:
            return None
        return " or ".join([w for w in wrong if w] + (["null"] if type(None) in args else []))
    if origin is Literal:
        return (
            None if value in args else f"one of {_words([str(a) for a in args])}{_nearest(str(value), map(str, args))}"
        )
    if origin in (list, tuple, Sequence):
        if not isinstance(value, (ListConfig, list, tuple)):
            return f"a list of {_kind(args[0]) if args else 'values'}s"
        inner = [misfit(v, args[0]) for v in value] if args else []
        return next((f"a list, each {w}" for w in inner if w), None)
    if hint is bool:
        return None if isinstance(value, bool) else "true or false"
    if hint is int:
        return None if isinstance(value, int) and not isinstance(value, bool) else "a whole number"
    if hint is float:
        return None if isinstance(value, (int, float)) and not isinstance(value, bool) else "a number"
    if hint is str:
        return None if isinstance(value, str) else "text"
    if inspect.isclass(hint) and hint.__module__.startswith("ldmlab.") and isinstance(value, (str, bool, int, float)):
        return f"a part with a _target_ ({hint.__name__})"
    return None


def _kind(hint: Any) -> str:
    return {int: "whole number", float: "number", str: "word", bool: "true/false"}.get(hint, "value")


def _say(value: Any) -> str:
    return repr(OmegaConf.to_container(value)) if isinstance(value, (DictConfig, ListConfig)) else repr(value)


def _place(path: str, key: str, choices: dict[str, str]) -> str:
    """Where a yaml sets the key: the chosen file of the group, or of a group nested in it."""
    top = path.split(".")[0]
    for group in [path.replace(".", "/"), *sorted(g for g in choices if g.split("/")[0] == top)]:
        if group in choices:
            file = CONF / group / f"{choices[group]}.yaml"
            if line := _line_of(file, key):
                return f" Set in {file.relative_to(ROOT)}{line}."
    return ""


def _line_of(file: Path, key: str) -> str:
    if not file.is_file():
        return ""
    for number, line in enumerate(file.read_text().splitlines(), 1):
        if re.search(rf"(^|[\s{{,]){re.escape(key)}\s*:", line):
            return f", line {number}"
    return ""


# ---- words and ranges ----------------------------------------------------------------------------------------------------


def _check_values(cfg: DictConfig) -> None:
    for path, allowed in CHOICES.items():
        value = OmegaConf.select(cfg, path)
        if value is not None and value not in allowed:
            raise ConfigError(f"{path} must be one of {_words(allowed)}; got {value!r}.{_nearest(str(value), allowed)}")
    for path in POSITIVE:
        value = OmegaConf.select(cfg, path)
        if value is not None and not value > 0:
            raise ConfigError(f"{path} must be greater than 0; got {value!r}.")
    for path in FRACTIONS:
        value = OmegaConf.select(cfg, path)
        for number in value if isinstance(value, ListConfig) else [] if value is None else [value]:
            if not 0 <= number <= 1:
                raise ConfigError(f"{path} must be between 0 and 1; got {number!r}.")
    for path in ("ae.fit.betas", "ldm.fit.betas", "eval.extractor_fit.betas", "guidance.classifier.fit.betas"):
        value = OmegaConf.select(cfg, path)
        if value is not None and (len(value) != 2 or not all(0 <= b < 1 for b in value)):
            raise ConfigError(f"{path} must be two numbers in [0, 1); got {_say(value)}.")
    _check_scale(cfg)


def _check_scale(cfg: DictConfig) -> None:
    mode = OmegaConf.select(cfg, "ae.latent_scale.mode")
    for name in ("scale", "shift"):
        path = f"ae.latent_scale.{name}"
        value = OmegaConf.select(cfg, path)
        numbers = list(value) if isinstance(value, ListConfig) else [value]
        if value is None:
            if mode == "given" and name == "scale":
                raise ConfigError(f"ae.latent_scale.mode=given needs {path}=…: a number, or a list of one per channel.")
        elif mode != "given":
            raise ConfigError(
                f"{path}={_say(value)} is read with ae.latent_scale.mode=given alone; the mode is {mode}."
            )
        elif not numbers or not all(isinstance(n, (int, float)) and not isinstance(n, bool) for n in numbers):
            raise ConfigError(f"{path} must be a number, or a list of one per latent channel; got {_say(value)}.")
        elif name == "scale" and not all(n > 0 for n in numbers):
            raise ConfigError(f"{path} must be greater than 0; got {_say(value)}.")


def _nearest(word: str, allowed: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.5)
    return f" Did you mean '{near[0]}'?" if near else ""


def _words(names: Iterable[str]) -> str:
    return ", ".join(names) or "nothing"
