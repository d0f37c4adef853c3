"""The only module that makes parts from options, and the only one that calls Hydra's instantiate."""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from ldmlab.autoencoders.autoencoder import Autoencoder
from ldmlab.conditioning.base import Conditioner, Facts, built
from ldmlab.conditioning.compose import Compose
from ldmlab.conditioning.one_hot import OneHot
from ldmlab.data.base import ImageDataset, channels_of
from ldmlab.data.fields import Field
from ldmlab.diffusion.denoiser import Denoiser
from ldmlab.diffusion.gaussian import GaussianDenoiser
from ldmlab.diffusion.objectives import Objective
from ldmlab.errors import ConfigError, UserError
from ldmlab.guidance.autoguidance import Autoguidance
from ldmlab.guidance.base import Guidance
from ldmlab.guidance.classifier import ClassifierGuidance
from ldmlab.guidance.classifier_free import ClassifierFreeGuidance
from ldmlab.guidance.image import ImageGuidance
from ldmlab.guidance.observations import Observation
from ldmlab.guidance.stack import in_order
from ldmlab.metrics.metric import Metric
from ldmlab.networks.noisy_classifier import NoisyClassifier
from ldmlab.randomness import seed_of
from ldmlab.samplers.sampler import Sampler
from ldmlab.training.muon import Muon

SHAPES = "ldmlab.data.shapes.Shapes"


def part(node: DictConfig, **given: Any) -> Any:
    """One part: its options, plus what follows from other parts. A UserError of the part is raised as it is."""
    made = _made(node)
    return made(**given) if node.get("_partial_", False) else made


def _made(node: DictConfig, **how: Any) -> Any:
    try:
        return instantiate(node, _convert_="all", **how)
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise


def editable(node: DictConfig) -> DictConfig:
    """A copy that can be changed; a composed configuration is read-only."""
    copy = cast(DictConfig, node.copy())
    OmegaConf.set_readonly(copy, False)
    return copy


@contextlib.contextmanager
def seeded(*labels: int | str) -> Iterator[None]:
    """Initial weights depend on (run seed, part) alone, whatever was built before; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(*labels))
        yield


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
    """Modules made inside are on the meta device and not initialised: shapes and counts, no memory, no time.

    (Initialising meta tensors would load PyTorch's compiler, which takes 5 s.)
    """
    from torch.nn import init

    names = [name for name in vars(init) if name.endswith("_") and not name.startswith("_")]
    before = {name: getattr(init, name) for name in names}
    try:
        for name in names:
            setattr(init, name, lambda tensor, *args, **kwargs: tensor)
        with torch.device("meta"):
            yield
    finally:
        for name, function in before.items():
            setattr(init, name, function)


def dataset(cfg: DictConfig, split: str, cache: Path | None) -> ImageDataset:
    return cast(ImageDataset, part(cfg.data, split=split, cache=cache))


def class_of(node: DictConfig) -> Any:
    """The class behind a node's `_target_`."""
    return get_object(node["_target_"])


def options_for(node: DictConfig, function: Callable[..., Any]) -> dict[str, Any]:
    """The options of a node that a function takes, as plain values."""
    wanted = inspect.signature(function).parameters
    plain = cast(dict[str, Any], OmegaConf.to_container(node, resolve=True))
    return {name: value for name, value in plain.items() if name in wanted}


def with_fields(cfg: DictConfig, split: str, cache: Path | None, fields: Sequence[str]) -> ImageDataset:
    """The run's data as it is, not mirrored, with these fields where it can give them: shapes can give all of theirs."""
    own = editable(cfg.data)
    if "flip" in own:
        own.flip = False
    if own["_target_"] == SHAPES:
        own.fields = list(fields)
    return cast(ImageDataset, part(own, split=split, cache=cache))


def shapes(cfg: DictConfig, split: str, cache: Path | None) -> ImageDataset:
    """The generated shapes that an extractor is trained on, with the fields that it learns: at the run's resolution, the run's own
    ones where it uses them, else the default set."""
    fields = list(cfg.eval.extractor.learns)
    if cfg.data["_target_"] == SHAPES:
        own = editable(cfg.data)
        own.fields = fields
        return cast(ImageDataset, part(own, split=split, cache=cache))
    from ldmlab.data.shapes import Shapes

    return Shapes(resolution=cfg.data.resolution, split=split, fields=fields, cache=cache)  # type: ignore[arg-type]


def autoencoder(cfg: DictConfig) -> Autoencoder:
    with seeded(cfg.ae.seed, "autoencoder"):
        node = cfg.ae.regulariser
        regulariser = part(node, c=cfg.ae.network.c) if node.get("_partial_", False) else part(node)
        network = part(cfg.ae.network, channels_in=regulariser.channels_in, **image_channels(cfg, cfg.ae.network, "ae"))
        return Autoencoder(network, regulariser)


def image_channels(cfg: DictConfig, node: DictConfig, option: str) -> dict[str, int]:
    """What a part is told of images that are not RGB: {} of RGB. ConfigError for a part that takes nothing else."""
    channels = int(cfg.data.channels) if "channels" in cfg.data else 3
    if channels == 3:
        return {}
    if "image_channels" not in inspect.signature(class_of(node)).parameters:
        raise ConfigError(
            f"{option} takes pictures in RGB, and data.channels={channels}. {class_of(node).__name__} has no argument image_channels; "
            "choose another part, or data.channels=3."
        )
    return {"image_channels": channels}


def first_stage_loss(cfg: DictConfig, classifier: nn.Module | None) -> Any:
    """`ae.loss` with its parts. `classifier` is the trained shapes classifier, for the perceptual distance that asks for it."""
    with seeded(cfg.ae.seed, "loss"):
        node = cfg.ae.loss
        if needs_classifier(cfg):
            bare = editable(node)
            perceptual, bare.perceptual = bare.perceptual, None
            bare["_partial_"] = True
            made = {"perceptual": part(perceptual, classifier=classifier), **_discriminator(cfg)}
            return instantiate(bare, _convert_="all")(**made)
        own = _discriminator(cfg)
        return _made(node, _partial_=True)(**own) if own else part(node)


def _discriminator(cfg: DictConfig) -> dict[str, nn.Module]:
    """The discriminator of images that are not RGB, where the loss has one."""
    node = cfg.ae.loss.discriminator if "discriminator" in cfg.ae.loss else None
    if node is None or not (given := image_channels(cfg, node, "ae.loss.discriminator")):
        return {}
    return {"discriminator": part(node, **given) if node.get("_partial_", False) else _made(node, **given)}


def needs_classifier(cfg: DictConfig) -> bool:
    """Whether the first stage's perceptual distance looks through the shapes classifier."""
    perceptual = cfg.ae.loss.perceptual if cfg.ae.loss is not None else None
    return perceptual is not None and bool(perceptual.get("_partial_", False))


def evaluation_distance(cfg: DictConfig, extractor: nn.Module | None) -> nn.Module | None:
    """The perceptual distance that reconstructions are scored with: in the features of `eval.extractor`, so that every
    first stage of a study is measured alike whatever it was trained with. Where the extractor has no feature maps, the
    first stage's own; None without either."""
    from ldmlab.autoencoders.perceptual import ShapesDistance, SqueezeNetDistance
    from ldmlab.metrics.features import SqueezeNet

    if isinstance(extractor, SqueezeNet) and cfg.data.resolution >= 32:
        return SqueezeNetDistance(cfg.eval.extractor.weights)
    if extractor is not None and hasattr(extractor, "feature_maps"):
        return ShapesDistance(extractor)
    own = cfg.ae.loss is not None and cfg.ae.loss.perceptual is not None and not needs_classifier(cfg)
    return cast(nn.Module, part(cfg.ae.loss.perceptual)) if own else None


def conditioner(
    cfg: DictConfig, data: ImageDataset, ae: Autoencoder | None = None, tokenizer: Path | None = None
) -> Conditioner:
    """`cond.conditioner` and the parts in it, each with the facts that its constructor names.

    `ae`: the first stage. Without it a conditioner cannot ask it anything, and its latent shape is that of the options.
    `tokenizer`: folder of the tokenizer that was trained on the data (`pipeline.tokenizer`).
    """
    encode = None if ae is None else frozen_encode(ae)
    if ae is None:
        with shapes_only():
            ae = autoencoder(cfg)
    facts = Facts(
        n_classes=len(data.class_names), class_names=tuple(data.class_names), resolution=data.resolution,
        latent_shape=ae.latent_shape(data.resolution), first_stage=encode, image_channels=channels_of(data),
        vocabulary={field.name: field.values for field in data.declared}, trained_tokenizer=tokenizer,
    )  # fmt: skip
    node = conditioners(cfg)
    made: Any = _made(node, _partial_=True) if "_target_" in node else None
    if made is None:
        made = partial(Compose, parts=[_made(part_node, _partial_=True) for part_node in node.values()])
    return cast(Conditioner, built(made, facts))


def conditioners(cfg: DictConfig) -> DictConfig:
    """The one conditioner's node, or of several {name: node}."""
    if cfg.cond.parts is None:
        return cast(DictConfig, cfg.cond.conditioner)
    return OmegaConf.create({name: part_node.conditioner for name, part_node in cfg.cond.parts.items()})


def kinds_of_condition(cfg: DictConfig) -> list[str]:
    """Their class names."""
    node = conditioners(cfg)
    return [str(each["_target_"]).rpartition(".")[2] for each in ([node] if "_target_" in node else node.values())]


def drop(cfg: DictConfig) -> float | list[float]:
    """How often an example is trained without its conditions: together, or each by itself."""
    if not cfg.cond.apart:
        return float(cfg.cond.drop)
    return [float(part_node.drop) for part_node in cfg.cond.parts.values()]


def frozen_encode(ae: Autoencoder) -> Callable[[Tensor], Tensor]:
    """Image [B, 3, H, W] in [-1, 1] → standardised latents, the posterior's mean, without gradients.

    A function, so that a conditioner that keeps it does not own the first stage's weights.
    """
    return torch.no_grad()(lambda image_BCHW: ae.encode(image_BCHW))


def denoiser(
    cfg: DictConfig,
    ae: Autoencoder,
    data: ImageDataset,
    conditions: Conditioner | None = None,
    tokenizer: Path | None = None,
) -> Denoiser:
    """Network and conditioner; `conditions`: a conditioner that is already made. `tokenizer`: as of `conditioner`."""
    with seeded(cfg.ldm.seed, "denoiser"):
        conditions = conditioner(cfg, data, ae, tokenizer) if conditions is None else conditions
        closed = closed_form(cfg)
        if closed:
            conditions = cast(Conditioner, class_means(conditions, len(data.class_names)))
        network = part(
            cfg.ldm.network,
            in_channels=ae.c + conditions.concat_channels,
            out_channels=ae.c,
            context_dim=conditions.context_dim,
            vector_dim=conditions.vector_dim,
            latent_size=ae.latent_shape(data.resolution)[1],
        )
        return (GaussianDenoiser if closed else Denoiser)(network, conditions)


def closed_form(cfg: DictConfig) -> bool:
    """Whether the denoiser is fitted in closed form: `ldm=gaussian`."""
    return bool(getattr(get_object(cfg.ldm.network["_target_"]), "closed_form", False))


def class_means(conditions: Any, n_classes: int) -> Any:
    """The condition of a denoiser with a mean for each class: one-hot labels in the place of a learned embedding."""
    if conditions.needs not in ((), ("label",)):
        raise ConfigError(
            f"ldm=gaussian has one mean for each class, and cond conditions on {', '.join(conditions.needs)}. Use "
            "cond=class_label, or cond=none."
        )
    return OneHot(n_classes) if conditions.needs else conditions


def objective(cfg: DictConfig, latent_size: int | None = None) -> Objective:
    """`objective` with its parts. A schedule that follows the latent's size (Shifted) is given it; None: it is found out here."""
    node = cfg.objective
    if not node.schedule.get("_partial_", False):
        return cast(Objective, part(node))
    if latent_size is None:
        with shapes_only():
            latent_size = autoencoder(cfg).latent_shape(cfg.data.resolution)[1]
    schedule = part(node.schedule, latent_size=latent_size)
    bare = editable(node)
    bare.schedule = None
    bare["_partial_"] = True
    return cast(Objective, part(bare, schedule=schedule))


def sampler(cfg: DictConfig) -> Sampler:
    return cast(Sampler, part(cfg.sampler))


def noisy_classifier(cfg: DictConfig, ae: Autoencoder, data: Any) -> NoisyClassifier:
    """The network of guidance=classifier, untrained."""
    with seeded(cfg.guidance.classifier.seed, "noisy_classifier"):
        size = ae.latent_shape(data.resolution)[1]
        node = cfg.guidance.classifier.network
        return cast(NoisyClassifier, part(node, in_channels=ae.c, n_classes=len(data.class_names), latent_size=size))


def guidance(cfg: DictConfig, chosen: Sampler) -> tuple[Guidance, ...]:
    """Every kind of guidance that samples are drawn with: the sampler's own options, and `guidance`; from the network outwards."""
    kinds: list[Guidance] = [ClassifierFreeGuidance(chosen)] if chosen.guidance != 1 else []
    for name, node in cfg.guidance.items():
        if node is None:
            continue
        if name == "auto":
            kinds.append(Autoguidance(node.scale, node.snapshot, node.run))
        elif name == "classifier":
            kinds.append(ClassifierGuidance(node.scale, _floats(node.interval)))
        elif name == "image":
            transform = None if node.transform is None else cast(Observation, part(node.transform))
            own = cast(dict[str, Any], OmegaConf.to_container(node))["transform"]
            kinds.append(ImageGuidance(node.file, node.scale, _floats(node.interval), transform, own))
        else:
            kinds.append(part(node))
    return in_order(kinds)


def _floats(interval: Any) -> list[float] | None:
    return None if interval is None else [float(ratio) for ratio in interval]


def metrics(cfg: DictConfig) -> tuple[Metric, ...]:
    """`eval.metrics`, in order."""
    return tuple(part(cfg.metric[name]) for name in cfg.eval.metrics)


def extractor(cfg: DictConfig, declared: Sequence[Field]) -> nn.Module | None:
    """The configured feature extractor; one that is trained here comes untrained. None with eval=none.

    declared: the fields of the run's data, for an extractor that is trained on it.
    """
    node = cfg.eval.extractor
    if node is None:
        return None
    with seeded("extractor"):
        if not node.get("_partial_", False):
            return cast(nn.Module, part(node))
        if node.trained_on == "shapes":
            from ldmlab.data.shapes import DECLARED

            declared = list(DECLARED.values())
        given = {} if node.trained_on == "shapes" else image_channels(cfg, node, "eval.extractor")
        return cast(nn.Module, part(node, declared=declared, **given))


def optimizer(module: nn.Module, fit: DictConfig) -> torch.optim.Optimizer:
    """AdamW, with weight_decay 0 it is Adam; or Muon where the budget asks for it. Learning rate per step comes from the loop."""
    if "optimizer" in fit and fit.optimizer == "muon":
        return Muon(module, fit.lr, tuple(fit.betas), fit.weight_decay)
    parameters = [p for p in module.parameters() if p.requires_grad]
    fused = bool(parameters) and all(p.device.type in ("cuda", "cpu") for p in parameters)
    return torch.optim.AdamW(parameters, lr=fit.lr, betas=tuple(fit.betas), weight_decay=fit.weight_decay, fused=fused)
