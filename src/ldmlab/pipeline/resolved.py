"""The parts of a run, made once on the meta device, and whether they fit each other and the data (net 3 of the configuration).

Checks, plan, costs and stages all read the shapes and sizes of parts here. Trained parts are built
again, with contents, where they are trained or loaded.
"""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from ldmlab import build
from ldmlab.autoencoders.autoencoder import Autoencoder
from ldmlab.autoencoders.tiles import starts
from ldmlab.conditioning.asked import Asked
from ldmlab.conditioning.base import Conditioner
from ldmlab.conditioning.source import ConditionSource, chosen
from ldmlab.config import execution
from ldmlab.data.base import ImageDataset, channels_of
from ldmlab.data.mosaic import Mosaic
from ldmlab.diffusion.denoiser import Denoiser
from ldmlab.diffusion.objectives import Objective
from ldmlab.diffusion.windows import Windows
from ldmlab.errors import ConfigError
from ldmlab.guidance.base import Guidance
from ldmlab.metrics.metric import Metric
from ldmlab.pipeline import fitting, large, planned, snapshots
from ldmlab.pipeline.asked import Request, request_of
from ldmlab.pipeline.costs import flops_of
from ldmlab.samplers.sampler import Sampler


@dataclass(frozen=True)
class Resolved:
    """One run's configuration, data and parts. Networks have shapes and no contents."""

    cfg: DictConfig
    choices: dict[str, str]
    data: ImageDataset
    val: ImageDataset
    data_caches: Path
    autoencoder: Autoencoder
    denoiser: Denoiser
    objective: Objective
    sampler: Sampler
    guidance: tuple[Guidance, ...]
    extractor: nn.Module | None
    metrics: tuple[Metric, ...] = ()
    notes: list[str] = field(default_factory=list)
    request: Request | None = None  # what a person asked of sample.py
    budget: dict[str, Any] | None = None  # what `ldm.budget` chose (`budget.described`); None without a target

    @property
    def conditioner(self) -> Conditioner:
        return self.denoiser.conditioner

    @property
    def resolution(self) -> int:
        return self.data.resolution

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(c, H, W)."""
        return self.autoencoder.latent_shape(self.resolution)

    @property
    def size(self) -> tuple[int, int]:
        """Of samples, height and width in pixels; data.resolution unless `size` says otherwise."""
        return large.size_of(self.cfg, self.resolution)

    @property
    def larger(self) -> bool:
        """Whether samples have another size than the images of training."""
        return self.size != (self.resolution, self.resolution)

    @property
    def sampled_shape(self) -> tuple[int, int, int]:
        """(c, H, W) of the samples' latents."""
        f = self.autoencoder.f
        return self.autoencoder.c, self.size[0] // f, self.size[1] // f

    @property
    def ranks(self) -> int:
        return execution.ranks(self.cfg)

    @property
    def snapshots(self) -> list[int]:
        """Training images of the snapshots that are sampled and scored, rising; [0] for an imported denoiser."""
        return snapshots.scored(self.cfg)

    @property
    def condition_fields(self) -> tuple[str, ...]:
        """What samples are drawn for: what the conditioner reads, and what guidance reads."""
        wanted = [*self.conditioner.needs, *(name for kind in self.guidance for name in kind.fields)]
        return tuple(dict.fromkeys(wanted))

    @property
    def visited(self) -> list[int]:
        """The times that are sampled, T-1 first."""
        return self.sampler.times(self.objective.schedule.T)[:-1]

    def conditions(self, n: int) -> ConditionSource:
        """What n samples are drawn for."""
        eval_, cond = self.cfg.eval, self.cfg.cond
        wanted = {"label": cond.label, "prompt": cond.prompt}
        held_out: ImageDataset = Mosaic(self.val, *self.size) if self.larger else self.val

        def usual() -> ConditionSource:
            return chosen(eval_.label_mode, self.condition_fields, self.data, held_out, n, eval_.seed, **wanted)

        return usual() if self.request is None else self.request.source(usual, n)

    @functools.cached_property
    def costs(self) -> "Costs":
        """Of its networks on its shapes; runs of one process that share a first stage, or a denoiser, count it once.

        Counted for a dry run, and where a budget has counted already: meta kernels load PyTorch's compiler, which takes 5 s.
        """
        cfg = self.cfg
        if not cfg.dry_run and self.budget is None:
            return Costs()
        image = torch.empty(1, channels_of(self.data), self.resolution, self.resolution, device="meta")
        z = torch.empty(1, *self.latent_shape, device="meta")
        first = [image.shape, *map(OmegaConf.to_container, (cfg.ae.network, cfg.ae.regulariser))]
        facts = (len(self.data.class_names), *(field.values for field in self.data.declared))
        second = [*first, *map(OmegaConf.to_container, (cfg.ldm.network, build.conditioners(cfg))), *facts]
        encode, decode = _once(
            first,
            lambda: flops_of(lambda: self.autoencoder.moments(image)),
            lambda: flops_of(lambda: self.autoencoder.decode(z)),
        )
        forward, condition = _once(
            second,
            lambda: 0.0 if self.denoiser.closed_form else forward_flops(self.denoiser, self.latent_shape),
            lambda: flops_of(lambda: self.denoiser.null(1, self.latent_shape[1:], "meta")),
        )
        learns = any(weight.requires_grad for weight in cast(nn.Module, self.conditioner).parameters())
        return Costs(encode, decode, forward, condition, learns)

    @functools.cached_property
    def sampled_costs(self) -> "Costs":
        """Of samples, which may be larger than the images of training and seen through windows and in tiles."""
        if not self.costs.forward or not large.words(self):
            return self.costs
        ae, (c, height, width) = self.autoencoder, self.sampled_shape
        windows = large.windows_of(self.cfg, ae.f)
        tile = (large.tile_of(self.cfg) or max(self.size)) // ae.f
        tiles = len(starts(height, tile, tile // 4)) * len(starts(width, tile, tile // 4))
        z = torch.empty(1, c, min(height, tile), min(width, tile), device="meta")
        decode = tiles * flops_of(lambda: ae.decode(z))
        return replace(self.costs, decode=decode, forward=forward_flops(self.denoiser, (c, height, width), windows))


_COUNTED: dict[str, tuple[float, ...]] = {}


def _once(facts: list[Any], *counts: Callable[[], float]) -> tuple[float, ...]:
    """What is counted under these facts, from this process's memory where it was counted before."""
    key = json.dumps(facts)
    if key not in _COUNTED:
        _COUNTED[key] = tuple(count() for count in counts)
    return _COUNTED[key]


@dataclass(frozen=True)
class Costs:
    """Floating-point operations of one image's forward passes; zeros when nobody counts."""

    encode: float = 0.0
    decode: float = 0.0
    forward: float = 0.0
    condition: float = 0.0  # reading one condition: a text's transformer; counted on the null condition
    condition_learns: bool = False  # then training needs two more of them for the backward pass

    @property
    def training(self) -> float:
        """Of a training image behind the first stage: forward and backward through network and conditioner."""
        return 3 * self.forward + self.condition * (3 if self.condition_learns else 1)


def forward_flops(denoiser: Denoiser, latent_shape: tuple[int, int, int], windows: Windows | None = None) -> float:
    """Of one forward pass of the network under the null condition, window by window where there are any; on the meta device."""
    if windows is not None:
        places = windows.places(*latent_shape[1:])
        height, width = (min(windows.side, length) for length in latent_shape[1:])
        return len(places) * forward_flops(denoiser, (latent_shape[0], height, width))
    z, t = torch.empty(1, *latent_shape, device="meta"), torch.zeros(1, dtype=torch.long, device="meta")
    condition = denoiser.null(1, latent_shape[1:], "meta")
    return flops_of(lambda: denoiser.network(z, t, condition))


def resolve(
    cfg: DictConfig,
    choices: dict[str, str],
    data: ImageDataset,
    val: ImageDataset,
    caches: Path,
    asked: Asked | None = None,
    scored: bool = True,
) -> Resolved:
    """The parts of a run whose data is there, each built once. asked: what sample.py reads beside the configuration. scored: with its
    metrics.

    Raises ConfigError when parts do not fit each other or the data, naming the option and the way out.
    """
    fitting.check_batches(cfg)
    with build.shapes_only():
        fitting.check_discriminator(cfg, data.resolution)
        autoencoder = build.autoencoder(cfg)
        fitting.check_first_stage(cfg, autoencoder, len(data))
        _, height, width = autoencoder.latent_shape(data.resolution)
        conditioner = build.conditioner(cfg, data, autoencoder)
        fitting.check_fields(cfg, conditioner, data, choices.get("cond", "…"))
        denoiser = build.denoiser(cfg, autoencoder, data, conditioner)
    denoiser.network.check_latent(height, width)  # type: ignore[operator]
    objective = build.objective(cfg, height)
    sampler = build.sampler(cfg)
    guidance = build.guidance(cfg, sampler)
    extractor = planned.extractor(cfg) if planned.planned(cfg) else build.extractor(cfg, data.declared)
    if build.needs_classifier(cfg) and not hasattr(extractor, "feature_maps"):
        raise ConfigError(
            f"ae/loss/perceptual=shapes looks through the classifier of eval=shapes, and eval={choices['eval']} has none. Set "
            "eval=shapes or classifier, or another ae/loss/perceptual."
        )
    found = Resolved(
        cfg, choices, data, val, caches, autoencoder, denoiser, objective, sampler, guidance, extractor
    )  # fmt: skip
    fitting.check_channels(found)
    large.check(found)
    fitting.check_sampling(found)
    fitting.check_guidance(found)
    found = replace(found, request=request_of(asked, found))
    fitting.check_label(found)
    snapshots.check(cfg)
    fitting.check_power_ema(cfg)
    fitting.check_evaluation(found)
    return replace(found, metrics=tuple(fitting.checked_metrics(found)) if scored else ())
