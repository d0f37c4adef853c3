"""`ldm.weights`: a denoiser from a file. Checks that it fits, says what of it enters an id, and notes what a user should know.

Nothing of it is trained, so `ldm.fit` does not exist for it (`config.finish` sets it to null). Its stage holds what a trained
one does: weights.safetensors and, where the file has an averaged copy, ema.safetensors; `eval.weights` chooses as ever.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from ldmlab import build
from ldmlab.conditioning.text import Text
from ldmlab.config.compose import group_options, load
from ldmlab.config.schema import TARGETS
from ldmlab.diffusion.denoiser import Denoiser
from ldmlab.diffusion.objectives import Objective
from ldmlab.errors import ConfigError, WeightsError
from ldmlab.interop import denoisers, diffusers_dit, schedules, token_layouts, weights
from ldmlab.interop.class_tables import MAP, TABLE
from ldmlab.interop.compvis import some
from ldmlab.interop.official_unet import Average, UNetLayout
from ldmlab.networks.attention import SelfAttention, SpatialTransformer
from ldmlab.networks.blocks import OFFICIAL
from ldmlab.networks.dit import PatchAttention
from ldmlab.pipeline import planned, weights_first_stage
from ldmlab.pipeline.stage import deciding
from ldmlab.store.checkpoint import save_tensors
from ldmlab.store.files import atomic, read_json, write_json
from ldmlab.training.loop import total_steps


def check(cfg: DictConfig, choices: dict[str, str], model: Denoiser, objective: Objective) -> None:
    """Whether `ldm.weights`, or `ldm.start`, can be what `ldm`, `cond` and `objective` say. Reads the file; `model`: on the meta device.

    Raises WeightsError or ConfigError, naming what differs and, of the network, which words fit.
    """
    source = cfg.ldm.start if cfg.ldm.weights is None else cfg.ldm.weights
    if source is None or planned.planned(cfg):
        return
    if cfg.ldm.weights is None and not Path(source).expanduser().exists():
        raise WeightsError(
            f"ldm.start={source}: no such file or folder. Give the weights that training begins with (of a finished denoiser: "
            "store/denoiser/…), or null to train from the beginning."
        )
    found = denoisers.read(Path(source))
    expected = model.state_dict()
    for tensors in (found.copies.raw, found.copies.ema):
        if tensors is not None:
            check_tensors(cfg, choices, found, tensors, expected)
    check_heads(found, model.network)
    check_groups(found, model.network)
    check_texts(found, model)
    check_objective(cfg, found, objective)
    if cfg.ldm.weights is not None and cfg.eval.weights == "ema" and found.copies.ema is None:
        raise ConfigError(
            f"eval.weights=ema, but {found.file} holds one copy of the weights and no averaged one beside it. "
            "Use eval.weights=raw, which is that copy."
        )


def check_options(cfg: DictConfig) -> None:
    """ConfigError for options of a training that does not take place, and for a denoiser from nowhere. Builds nothing."""
    if cfg.ldm.weights is None:
        if cfg.ldm.fit is None and not build.closed_form(cfg):
            raise ConfigError("ldm.fit=null trains nothing. Give a budget, or trained weights: ldm.weights=file.")
        return
    if cfg.ldm.start is not None:
        raise ConfigError("ldm.weights is not trained, so ldm.start has nothing to begin. Leave one of them out.")
    if list(cfg.eval.at) != [1.0]:
        raise ConfigError(f"eval.at={list(cfg.eval.at)}: ldm.weights is one state of a denoiser. Use eval.at=[1.0].")
    if cfg.ldm.power_ema or cfg.eval.ema_width is not None:
        raise ConfigError(
            "ldm.power_ema and eval.ema_width are averages made in training, and ldm.weights is not trained. "
            "Use ldm.power_ema=[] eval.ema_width=null."
        )
    if given := [name for name in (*TARGETS, "fair") if cfg.ldm.budget[name] is not None]:
        raise ConfigError(
            f"ldm.budget.{given[0]} chooses a width, and ldm.weights has one. Leave it out and set ldm.network.width to the file's."
        )


def check_tensors(
    cfg: DictConfig,
    choices: dict[str, str],
    found: denoisers.Source,
    tensors: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
) -> None:
    """Names, shapes and values of one copy."""
    if _lacks_null(tensors, expected) and cfg.cond.drop > 0:
        raise WeightsError(
            f"{found.file} was trained without the null class: its table has {len(tensors[TABLE])} rows for as many classes, "
            f"and cond.drop={cfg.cond.drop} says one more. Use cond.drop=0, which samples without guidance."
        )
    if wrong := weights.misfit(completed(tensors, expected), expected):
        raise WeightsError(
            f"{found.file} does not fit ldm={choices['ldm']} cond={choices['cond']}: {wrong}. {_fitting(tensors, cfg, choices)}"
        )
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        raise WeightsError(f"{found.file}: {some(broken)} holds values that are not finite; the file is damaged.")


def start_of(cfg: DictConfig) -> dict[str, Any]:
    """What of `ldm.start` decides a trained denoiser, for its id; {} without it."""
    if cfg.ldm.start is None:
        return {}
    return {"start": "planned" if planned.planned(cfg) else denoisers.digest(Path(cfg.ldm.start))}


def begin(cfg: DictConfig, model: Denoiser) -> None:
    """Give an untrained denoiser the weights of `ldm.start`: those that were trained, else their average."""
    if cfg.ldm.start is not None:
        copies = denoisers.read(Path(cfg.ldm.start)).copies
        load_into(model, copies.ema if copies.raw is None else copies.raw)


def load_into(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give a denoiser the weights of a file of its stage, which may lack the null class (`completed`)."""
    model.load_state_dict(completed(tensors, model.state_dict()))


def average_of(cfg: DictConfig, folder: Path) -> Average | None:
    """How the averaged copy of a finished denoiser was made: in training here, or as its file said."""
    if cfg.ldm.weights is not None:
        said = read_json(folder / "imported.json")["average"]
        return None if said is None else Average(**said)
    return None if cfg.ldm.fit.ema is None else Average(cfg.ldm.fit.ema, total_steps(cfg.ldm.fit))


def completed(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, with a row of zeros for a null class that was never trained (and, at cond.drop=0, is never used)."""
    whole = dict(tensors)
    if _lacks_null(tensors, expected):
        whole[TABLE] = torch.cat([whole[TABLE], torch.zeros_like(whole[TABLE][:1])])
    return whole


def check_heads(found: denoisers.Source, network: nn.Module) -> None:
    """WeightsError when the file says other heads than the network has: tensors fit any number (docs/paper.md#heads)."""
    ours = heads_of(network)
    if found.heads is None:
        return
    other = [
        f"{name} has {n} in the file and {ours[name]} here" for name, n in found.heads.items() if ours.get(name, n) != n
    ]
    if other:
        raise WeightsError(
            f"{found.file} has other attention heads: {some(other, 2)}. The same tensors would compute something else; "
            "set ldm.network.heads or ldm.network.head_channels."
        )


def check_groups(found: denoisers.Source, network: nn.Module) -> None:
    """WeightsError when a network of another layout normalises in other groups than the published ones do."""
    if found.layout != "ldmlab" and getattr(network, "grouping", OFFICIAL) != OFFICIAL:
        raise WeightsError(
            f"{found.file} was trained with {OFFICIAL.groups} groups in each normalisation, and ldm.network.norm_groups or "
            "norm_group_channels says others: the same tensors would compute something else. Set "
            f"ldm.network.norm_groups={OFFICIAL.groups} ldm.network.norm_group_channels=null."
        )


def check_texts(found: denoisers.Source, model: nn.Module) -> None:
    """ConfigError where a text transformer of another layout would read other token numbers, or hide padding, unlike in training."""
    for part in model.modules():
        if found.layout == "ldmlab" or not isinstance(part, Text):
            continue
        if part.learns_tokens:
            raise ConfigError(
                f"cond.conditioner.tokenizer=null trains a tokenizer on these captions, and {found.file} was trained with another. Give "
                "the folder of its own: tokenizer/ beside an export or in a pipeline's folder; bert-base-uncased's for official files."
            )
        if part.mask:
            raise ConfigError(
                f"cond.conditioner.mask=true hides padding, and nothing hid it from {found.file}. Set cond.conditioner.mask=false."
            )


def check_objective(cfg: DictConfig, found: denoisers.Source, objective: Objective) -> None:
    """WeightsError when the file says another target or noise schedule than `objective`."""
    target = target_of(cfg)
    if None not in (found.target, target) and found.target != target:
        raise WeightsError(
            f"{found.file} predicts {found.target}, and objective.target={target}. Choose another objective=, or "
            f"objective.target={found.target}."
        )
    if found.alpha_bar_T is None:
        return
    if other := schedules.difference(found.alpha_bar_T, objective.schedule.alpha_bar_T):
        fitting = [name for name in group_options("objective/schedule") if _has_schedule(name, found.alpha_bar_T)]
        way = f"It fits objective/schedule={fitting[0]}." if fitting else "No objective/schedule= of conf fits it."
        raise WeightsError(f"{found.file} was trained with another noise schedule than objective= has: {other}. {way}")


def target_of(cfg: DictConfig) -> str | None:
    """The word of `objective.target`; None for a part."""
    return cfg.objective.target if isinstance(cfg.objective.target, str) else None


def heads_of(network: nn.Module) -> dict[str, int]:
    """Heads of each self-attention of a UNet or a DiT, by its name; empty for other networks."""
    found = {name: m.heads for name, m in network.named_modules() if isinstance(m, (SelfAttention, PatchAttention))}
    for name, module in network.named_modules():
        if isinstance(module, SpatialTransformer):
            found[name] = module.transformer_blocks[0].attn1.heads  # type: ignore[assignment,union-attr]
    return found


def install(cfg: DictConfig, model: Denoiser, folder: Path) -> None:
    """Write the stage's files: each copy as the model's own tensors, and where they are from."""
    found = denoisers.read(Path(cfg.ldm.weights))
    for name, tensors in (("weights", found.copies.raw), ("ema", found.copies.ema)):
        if tensors is not None:
            load_into(model, tensors)
            own = model.state_dict()
            kept = {key: own[key][: len(tensor)] if key == TABLE else own[key] for key, tensor in tensors.items()}
            with atomic(folder / f"{name}.safetensors") as beside:
                save_tensors(beside, kept)
    if found.unused:
        with atomic(folder / denoisers.UNUSED) as beside:
            save_tensors(beside, dict(found.unused))
    source = {
        "file": found.file.name,
        "sha256_of_tensors": denoisers.digest(Path(cfg.ldm.weights)),
        "layout": found.layout,
        "average": None if found.average is None else found.average._asdict(),
    }
    write_json(folder / "imported.json", source)


def options(cfg: DictConfig) -> dict[str, Any]:
    """What an imported denoiser is a function of beside its first stage, for its id."""
    cond, objective = (OmegaConf.to_container(node) for node in (build.conditioners(cfg), cfg.objective))
    assert isinstance(objective, dict)
    read = {name: objective[name] for name in ("target", "schedule")}  # the rest of it matters in training alone
    return {
        "weights": denoisers.digest(Path(cfg.ldm.weights)), "format": denoisers.VERSION, "network": deciding(cfg.ldm.network),
        "cond": cond,
        "objective": read,
    }  # fmt: skip


def notes(cfg: DictConfig) -> list[str]:
    """What the file leaves open and the composition decides, to be read with the plan."""
    if cfg.ldm.weights is None:
        return []
    found, lines = denoisers.read(Path(cfg.ldm.weights)), []
    network = cfg.ldm.network
    if found.heads is None and "head_channels" in network:
        said = f"heads={network.heads}" if network.heads is not None else f"head_channels={network.head_channels}"
        lines.append(
            f"ldm.weights: no tensor says how many heads an attention has; this run computes with ldm.network.{said}. "
            "The paper's class-conditional models were trained with one head (docs/paper.md#heads)."
        )
    if found.layout == "diffusers" and "frequency_shift" in network:
        lines.append(
            f"ldm.weights: diffusers computes a DiT with ldm.network.frequency_shift={diffusers_dit.SHIFT}, its authors trained with 0; "
            f"this run computes with {network.frequency_shift}. Set what these weights were trained with."
        )
    mode = cfg.ae.latent_scale.mode
    if mode not in weights_first_stage.UNMEASURED and cfg.ae.weights is not None:
        said = "the file does not say" if found.scale is None else f"{found.scale.flatten()[0].item():.6g}"
        lines.append(
            f"ldm.weights: ae.latent_scale.mode={mode} measures the latent's scale on this data; the denoiser was trained with "
            f"another ({said}). Use mode=stored, given or none for its own."
        )
    return lines


def _lacks_null(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    if TABLE not in tensors or TABLE not in expected:
        return False
    (rows, dim), wanted = tensors[TABLE].shape, expected[TABLE].shape
    return bool((rows + 1, dim) == tuple(wanted))


def _has_schedule(option: str, alpha_bar_T: Tensor) -> bool:
    try:
        schedule = build.objective(load([f"objective/schedule={option}"]).cfg).schedule
    except ConfigError:
        return False  # a schedule that goes with other targets
    return schedules.difference(alpha_bar_T, schedule.alpha_bar_T) is None


def _fitting(tensors: Mapping[str, Tensor], cfg: DictConfig, choices: dict[str, str]) -> str:
    """The words whose network has exactly these tensors: an option of conf/ldm, or with the fewest changes."""
    layout = denoisers.layout_of(tensors)
    if layout is None:
        return _fitting_dit(tensors)
    parts = []
    name, best, debug = (
        choices["ldm"],
        _changes(cfg, layout),
        [f"debug={choices['debug']}"] if "debug" in choices else [],
    )
    others = group_options("ldm") if best is None or (best and not debug) else []  # debug=tiny gives all one structure
    for option in others:
        if best is not None and len(best) <= (name == choices["ldm"]):
            break  # nothing costs fewer words
        try:
            words = _changes(load([f"ldm={option}", "ldm.weights=file", *debug]).cfg, layout)
        except ConfigError:
            continue  # an option that needs more words than a name
        if words is not None and (best is None or len(words) + (name == choices["ldm"]) < len(best)):
            name, best = option, words  # another option costs one word more than the one that was typed
    if best is not None and (best or name != choices["ldm"]):
        parts.append(f"Its network is ldm={' '.join([name, *best])}; no tensor says how many heads.")
    parts.append(_fitting_cond(tensors, layout))
    parts.append(f"Its latent has {layout.out_channels} channels, ae.network.c={cfg.ae.network.c}.")
    return " ".join(parts)


def _fitting_cond(tensors: Mapping[str, Tensor], layout: UNetLayout) -> str:
    """What conditions it."""
    conditioner = {k.removeprefix("conditioner."): v for k, v in tensors.items() if k.startswith("conditioner.")}
    if extra := layout.in_channels - layout.out_channels:
        return f"It reads {extra} channels beside the latent: cond=semantic (cond.conditioner.channels={extra}), inpaint or superres."
    if layout.context_dim is None:
        if TABLE not in tensors:
            return "It reads no tokens: cond=none."
        plain = not any(name.startswith(MAP) for name in tensors)
        return (
            f"It has a vector for each class: cond=class_vector cond.conditioner.dim={tensors[TABLE].shape[1]}"
            f"{' ldm.network.vector_mlp=false' if plain else ''}."
        )
    reads = f"It reads tokens of {layout.context_dim} features: cond.conditioner.dim={layout.context_dim}"
    if not token_layouts.is_token_transformer(conditioner):
        return f"{reads} (cond=class_label)."
    try:
        depth, heads = token_layouts.depth_of(conditioner), token_layouts.heads_of(conditioner)
        vocabulary, length = (conditioner[name].shape[0] for name in (token_layouts.TABLE, token_layouts.POSITIONS))
    except KeyError:
        return f"{reads}; its transformer is not whole."
    return (
        f"{reads} cond.conditioner.depth={depth} cond.conditioner.heads={heads} cond.conditioner.vocab_size={vocabulary} (cond=text "
        f"cond.conditioner.length={length}, or cond=layout cond.conditioner.objects={(length - 2) // 3})."
    )


def _fitting_dit(tensors: Mapping[str, Tensor]) -> str:
    patches = tensors.get("network.x_embedder.proj.weight")
    if patches is None or patches.ndim != 4:
        return "It is no UNet of this family."
    blocks = len({name.split(".")[2] for name in tensors if name.startswith("network.blocks.")})
    dim = tensors[TABLE].shape[1] if TABLE in tensors else patches.shape[0]
    return (
        f"It is a DiT: ldm=dit_s_2 ldm.network.width={patches.shape[0]} ldm.network.blocks={blocks} ldm.network.patch={patches.shape[2]} "
        f"cond=class_vector cond.conditioner.dim={dim}."
    )


def _changes(cfg: DictConfig, layout: UNetLayout) -> list[str] | None:
    """Words that give `ldm.network` the file's structure; None for another kind of network."""
    network = cfg.ldm.network
    if "multipliers" not in network:
        return None
    names = ["width", "multipliers", "blocks", "scale_shift_norm", "resblock_updown"]
    names += ["transformer_depth"] if layout.context_dim is not None else []
    wanted: dict[str, Any] = {name: getattr(layout, name) for name in names}
    if sorted(network.attention_factors or []) != layout.attention_factors or network.attention_sizes is not None:
        wanted["attention_factors"] = layout.attention_factors
        wanted |= {"attention_sizes": None} if network.attention_sizes is not None else {}
    changed = {k: v for k, v in wanted.items() if k.startswith("attention") or network[k] != v}
    words = {None: "null"}
    return [
        f"ldm.network.{k}={words.get(v) if v is None else str(v).replace(' ', '').lower()}" for k, v in changed.items()
    ]
