"""`ae.weights`: a first stage from a file. Checks that it fits, says what of it enters an id, and sets the scale of its latent.

Nothing of such a stage is trained, so `ae.fit` and `ae.loss` do not exist for it (`config.finish` sets them to null).
"""

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from ldmlab import build
from ldmlab.autoencoders.autoencoder import Autoencoder
from ldmlab.autoencoders.scale import Scale
from ldmlab.config.compose import group_options, load
from ldmlab.errors import ConfigError, WeightsError
from ldmlab.interop import compvis, weights
from ldmlab.pipeline import planned
from ldmlab.pipeline.stage import deciding

UNMEASURED = ("none", "given", "stored")
"""Modes of `ae.latent_scale` that look at no data."""


def check(cfg: DictConfig, choices: dict[str, str], ae: Autoencoder) -> None:
    """Whether `ae.weights` can be what `ae` says. Reads the file; `ae`: on the meta device.

    Raises WeightsError or ConfigError, naming what differs and which `ae=` fits.
    """
    mode = cfg.ae.latent_scale.mode
    if cfg.ae.weights is None:
        if mode == "stored":
            raise ConfigError(
                "ae.latent_scale.mode=stored takes the scale that comes with ae.weights, and none are given."
            )
        fixed_scale(cfg)
        return
    if mode == "first_batch_std":
        raise ConfigError(
            "ae.latent_scale.mode=first_batch_std takes the batch that ae is trained with, and ae.weights is not trained. "
            "Use mode=global with ae.latent_scale.images=<that batch size>, which is the same measurement."
        )
    if planned.planned(cfg):
        return
    found = weights.read(Path(cfg.ae.weights))
    expected = tensors_of(ae)
    if not expected:
        raise ConfigError(f"ae={choices['ae']} has no weights, so ae.weights cannot be given with it.")
    if wrong := weights.misfit(found.tensors, expected):
        raise WeightsError(f"{found.file} does not fit ae={choices['ae']}: {wrong}. {_fitting(found.tensors, choices)}")
    if found.groups is not None and found.groups != groups_of(ae):
        raise WeightsError(
            f"{found.file} was trained with {_and(found.groups)} groups in its normalisations, ours has {_and(groups_of(ae))} at "
            f"ae.network.width={cfg.ae.network.width}: the same weights would compute something else. Multiples of 32 from 128 up agree."
        )
    broken = [name for name, tensor in found.tensors.items() if not tensor.isfinite().all()]
    if broken:
        raise WeightsError(
            f"{found.file}: {compvis.some(broken)} holds values that are not finite; the file is damaged."
        )
    fixed_scale(cfg)


def tensors_of(ae: Autoencoder) -> dict[str, Tensor]:
    """What a file must hold: everything but the latent's scale and shift."""
    return {k: v for k, v in ae.state_dict().items() if k not in weights.OURS}


def groups_of(ae: Autoencoder) -> list[int]:
    """The numbers of groups that occur in the network's normalisations."""
    return sorted({m.num_groups for m in ae.network.modules() if isinstance(m, nn.GroupNorm)})


def install(cfg: DictConfig, ae: Autoencoder) -> dict[str, Any]:
    """Put the file's weights into the autoencoder; what to write down about them."""
    found = weights.read(Path(cfg.ae.weights))
    ae.load_state_dict({**ae.state_dict(), **found.tensors})
    return {"file": found.file.name, "sha256": weights.sha256(found.file), "layout": found.layout}


def options(cfg: DictConfig) -> tuple[dict[str, Any], bool]:
    """What an imported stage is a function of, for its id, and whether the data is part of that."""
    scale = cfg.ae.latent_scale
    measured = scale.mode not in UNMEASURED
    content = "planned" if planned.planned(cfg) else weights.sha256(Path(cfg.ae.weights))
    own: dict[str, Any] = {
        "weights": content, "format": weights.VERSION, "network": deciding(cfg.ae.network),
        "regulariser": deciding(cfg.ae.regulariser), "latent_scale": {"mode": scale.mode},
    }  # fmt: skip
    if measured:
        return own | {"latent_scale": {"mode": scale.mode, "images": scale.images}, "seed": cfg.ae.seed}, True
    if (fixed := fixed_scale(cfg)) is not None:
        own["latent_scale"] |= {
            "scale": fixed.scale_C11.flatten().tolist(),
            "shift": fixed.shift_C11.flatten().tolist(),
        }
    return own, False


def scale_by_std(cfg: DictConfig) -> bool:
    """Whether the official model keeps the latent's scale as a tensor: it was measured on data, here or before the import.

    Otherwise (`mode=none`, `mode=given`, or a file without `scale_factor`) it is an option of the official yaml.
    """
    if cfg.ae.latent_scale.mode == "stored":
        return "scale_factor" in weights.tensors_in(weights.weights_file(Path(cfg.ae.weights)))[0]
    return cfg.ae.latent_scale.mode not in UNMEASURED


def fixed_scale(cfg: DictConfig) -> Scale | None:
    """Scale and shift that are known without data: `mode=given` and `mode=stored`; None for the other modes.

    Raises ConfigError when the file says none or the number of channels is another.
    """
    scale = cfg.ae.latent_scale
    if scale.mode == "given":
        pair = [torch.tensor(scale.scale), torch.tensor(0.0 if scale.shift is None else scale.shift)]
    elif scale.mode == "stored":
        found = weights.read(Path(cfg.ae.weights))
        if found.scale is None:
            raise ConfigError(
                f"ae.latent_scale.mode=stored, but {found.file.name} holds no scale. Use mode=global (measured), or "
                "mode=given ae.latent_scale.scale=… (kl-f8 of Stable Diffusion: 0.18215)."
            )
        pair = [found.scale, torch.zeros(()) if found.shift is None else found.shift]
    else:
        return None
    c = cfg.ae.network.c
    for name, value in zip(("scale", "shift"), pair, strict=True):
        if not value.isfinite().all() or (name == "scale" and not (value > 0).all()):
            raise ConfigError(
                f"ae.latent_scale.mode={scale.mode}: the {name} is {value.tolist()}; it must be finite"
                f"{' and greater than 0' if name == 'scale' else ''}. Use mode=global, which measures it."
            )
        if value.numel() not in (1, c):
            raise ConfigError(
                f"ae.latent_scale.{name} has {value.numel()} numbers; the latent has {c} channels. Give 1 or {c}."
            )
    return Scale(*(value.float().flatten().view(-1, 1, 1) for value in pair))


def _fitting(found: dict[str, Tensor], choices: dict[str, str]) -> str:
    """The words whose network has exactly these tensors: an option of conf/ae as it is, or with the fewest changes."""
    layout = compvis.layout_of(compvis.from_ours(found))
    if layout is None:
        return "It is no network of this family."
    rest = ["ae.weights=file", *([f"debug={choices['debug']}"] if "debug" in choices else [])]
    best: list[str] | None = None
    for name in group_options("ae"):
        if best and len(best) == 1:
            break  # an option as it is: nothing is shorter
        try:
            cfg = load([f"ae={name}", *rest]).cfg
            words = [f"ae={name}", *_changes(cfg, layout)]
            if _moments(cfg) != layout.moments * cfg.ae.network.c // layout.c or (best and len(words) >= len(best)):
                continue  # another kind of regulariser, or no better than what was found
            if weights.misfit(found, _meta_tensors(load([*words, *rest]).cfg if words[1:] else cfg)) is None:
                best = words
        except ConfigError:
            continue  # an option that needs more words than a name
    return f"It fits {' '.join(best)}." if best else "No ae= of conf/ae fits it."


def _changes(cfg: DictConfig, layout: compvis.Layout) -> list[str]:
    """Words that give `ae` the file's structure."""
    if "width" not in cfg.ae.network:
        return []
    names = ("c", "multipliers", "width", "blocks", "attention_factors", "middle_attention")
    wanted = {f"ae.network.{name}": getattr(layout, name) for name in names}
    if "codes" in cfg.ae.regulariser:
        wanted["ae.regulariser.codes"] = layout.codes
    return [f"{k}={str(v).replace(' ', '').lower()}" for k, v in wanted.items() if OmegaConf.select(cfg, k) != v]


def _moments(cfg: DictConfig) -> int:
    """Channels that the regulariser wants from the encoder."""
    node, c = cfg.ae.regulariser, cfg.ae.network.c
    with build.shapes_only():
        return int((build.part(node, c=c) if node.get("_partial_", False) else build.part(node)).channels_in(c))


def _meta_tensors(cfg: DictConfig) -> dict[str, Tensor]:
    with build.shapes_only():
        return tensors_of(build.autoencoder(cfg))


def _and(numbers: list[int]) -> str:
    return " and ".join(map(str, numbers))
