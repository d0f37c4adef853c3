"""Rules between options that need no part to be built. Each raises ConfigError naming the options and the way out."""

import os

from omegaconf import DictConfig, ListConfig

from ldmlab.config.schema import TARGETS
from ldmlab.config.values import say
from ldmlab.config.words import SWEEP_CHILD
from ldmlab.errors import ConfigError

LEVELS = {"first_stage": "ae.seed", "denoiser": "ldm.seed", "sampling": "eval.seed"}
"""The levels of a study's `seeds`, from the outermost in, and each one's option."""


def check_together(cfg: DictConfig, typed: frozenset[str]) -> None:
    """Every rule of this file, in the order in which a person would meet them."""
    check_width(cfg, typed)
    check_scale(cfg)
    check_seeds(cfg)
    check_serve(cfg)


def check_serve(cfg: DictConfig) -> None:
    """The site shows a whole store, and makes no page."""
    given = next((name for name in ("study", "runs", "out") if cfg.serve and cfg[name] is not None), None)
    if given is not None:
        raise ConfigError(
            f"serve=true shows the whole store and makes no page, so {given}={say(cfg[given])} has nothing to do. Leave one out."
        )


def check_seeds(cfg: DictConfig) -> None:
    """Several seeds are several runs."""
    for level, count in cfg.seeds.items():
        if count > 1 and SWEEP_CHILD not in os.environ:
            raise ConfigError(
                f"seeds.{level}={count} makes several cells, and this is one run. A sweep needs -m: python src/train.py -m …; "
                f"one other seed is {LEVELS[level]}=…."
            )


def check_width(cfg: DictConfig, typed: frozenset[str]) -> None:
    """A target of the denoiser's budget decides its width: one of the two may be typed."""
    for option, word in (("width", "the width"), ("level_channels", "the channels")):
        path = f"ldm.network.{option}"
        given = path in typed and cfg.ldm.network[option] is not None
        for name in TARGETS if given else ():
            if (value := cfg.ldm.budget[name]) is not None:
                raise ConfigError(
                    f"{path}={say(cfg.ldm.network[option])} and ldm.budget.{name}={value:g} are both given, and the budget chooses "
                    f"{word}. Leave {word} out, or set ldm.budget.{name}=null."
                )


def check_scale(cfg: DictConfig) -> None:
    """Scale and shift of the latents are options of mode=given only: one number, or one per latent channel."""
    mode = cfg.ae.latent_scale.mode
    for name in ("scale", "shift"):
        path, value = f"ae.latent_scale.{name}", cfg.ae.latent_scale[name]
        if value is None:
            if mode == "given" and name == "scale":
                raise ConfigError(f"ae.latent_scale.mode=given needs {path}=…: a number, or a list of one per channel.")
            continue
        if mode != "given":
            raise ConfigError(
                f"{path}={say(value)} is read with ae.latent_scale.mode=given alone; the mode is {mode}. Leave it out, or set the mode."
            )
        channels = cfg.ae.network.c if "c" in cfg.ae.network else None
        if isinstance(value, ListConfig) and channels is not None and len(value) != channels:
            raise ConfigError(
                f"{path}={say(value)} must be one number, or a list of {channels}, one per latent channel (ae.network.c); "
                f"it has {len(value)}. Give one of the two."
            )
