"""What a person asks of sample.py: words of the command line that are read as they are typed, before Hydra's grammar sees them.

A comma, an apostrophe or ${ in such a word is text.
"""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ldmlab.errors import ConfigError

FILES = ("layout", "semantic", "depth", "image", "mask")
SEVERAL = ("prompt", *FILES)  # words that may stand several times: a condition each
WORDS = (*SEVERAL, "prompts", "label", "seeds", "strength", "variations", "interpolate")
Between = Literal["seeds", "conditions"]


@dataclass(frozen=True)
class Asked:
    """Conditions as a person has them, and what the samples begin from.

    prompt: texts. label: class names or numbers. layout, semantic, depth, image, mask: paths. Of each as many as there are
    conditions, or one for all. seeds: of the images themselves, in the place of those that follow from eval.seed.
    strength: in (0, 1], of images that sampling begins from (SDEdit, `samplers.start`). variations: the same, of one sample.
    interpolate: between two seeds, or two conditions.
    """

    prompt: tuple[str, ...] = ()
    label: tuple[str, ...] = ()
    layout: tuple[str, ...] = ()
    semantic: tuple[str, ...] = ()
    depth: tuple[str, ...] = ()
    image: tuple[str, ...] = ()
    mask: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    strength: float | None = None
    variations: float | None = None
    interpolate: Between | None = None
    typed: tuple[str, ...] = field(default=(), compare=False)  # the words, for messages

    def __post_init__(self) -> None:
        counts = {name: len(getattr(self, name)) for name in (*SEVERAL, "label") if getattr(self, name)}
        if len(set(counts.values()) - {1}) > 1:
            listed = ", ".join(f"{n} {name}" for name, n in counts.items())
            raise ConfigError(f"{listed}: give one of each for every condition, or one for all.")
        if self.mask and not self.image:
            raise ConfigError(f"mask={self.mask[0]} marks a hole of a picture. Give the picture too: image=….")
        if self.strength is not None and not self.image:
            raise ConfigError(f"strength={self.strength:g} says how far from a picture. Give the picture too: image=….")
        if self.strength is not None and self.mask:
            raise ConfigError(
                "strength=… and mask=… are two ways to use image=…: to start from it, or to fill a hole in it."
            )
        if self.variations is not None and (self.strength is not None or self.interpolate is not None):
            raise ConfigError("variations=… are of one sample, without strength=… and interpolate=…. Leave one out.")
        if self.variations is not None and len(self.seeds) > 1:
            raise ConfigError(
                f"variations={self.variations:g} are of one sample. Give its seed alone: seeds={self.seeds[0]}."
            )
        if self.interpolate == "seeds" and len(self.seeds) != 2:
            raise ConfigError("interpolate=seeds goes from one seed to another. Give the two: seeds=1,2.")
        if self.interpolate == "seeds" and self.conditions > 1:
            raise ConfigError(f"interpolate=seeds has one condition, and there are {self.conditions}. Give one.")
        if self.interpolate == "conditions" and self.conditions != 2:
            raise ConfigError(
                "interpolate=conditions goes from one condition to another. Give two: prompt=… prompt=…, or "
                "'cond.label=[…,…]', or two files."
            )
        if self.interpolate == "conditions" and len(self.seeds) > 1:
            raise ConfigError("interpolate=conditions keeps one seed. Give one: seeds=1.")

    @property
    def conditions(self) -> int:
        """How many there are; 1 also where none was given."""
        return max(1, *(len(getattr(self, name)) for name in (*SEVERAL, "label")))

    @property
    def anything(self) -> bool:
        """Whether a condition, or where to begin, was given."""
        return self != Asked()

    def of(self, k: int) -> dict[str, str]:
        """What was given for condition k: the word → its one value."""
        given = {name: getattr(self, name) for name in (*SEVERAL, "label")}
        return {name: values[k % len(values)] for name, values in given.items() if values}

    def images(self, n: int | None) -> int:
        """How many samples: `n` where it was typed, else one a seed, else 8, and the same number of each condition."""
        if n is None:
            each = len(self.seeds) if self.seeds and self.interpolate is None and self.variations is None else 0
            return each * self.conditions or (8 if self.interpolate else -(-8 // self.conditions) * self.conditions)
        if self.interpolate is not None and n < 2:
            raise ConfigError(f"n={n}: from one to the other are 2 pictures or more. Set n=8.")
        if (
            self.seeds
            and self.interpolate is None
            and self.variations is None
            and n > len(self.seeds) * self.conditions
        ):
            raise ConfigError(
                f"n={n} is more than the {len(self.seeds)} seeds given. Leave n out, or give as many seeds."
            )
        return n


def taken(words: Sequence[str]) -> tuple[Asked, list[str]]:
    """(What was asked, the other words). `cond.label=[rose,tulip]` is taken too, for it is two conditions.

    Raises ConfigError for a word that is empty or given twice where one counts, and for numbers out of range.
    """
    found: dict[str, list[str]] = {}
    rest, typed = [], []
    for word in words:
        name, equals, value = word.partition("=")
        if name == "cond.label" and value.startswith("[") and value.endswith("]"):
            name, value = "label", value[1:-1]
        elif name not in WORDS or name == "label" or not equals:
            rest.append(word)
            continue
        if not value.strip() and name != "prompt":  # the empty prompt is a prompt
            raise ConfigError(f"{name}= has no value. {_EXAMPLES[name]}")
        if name in found and name not in SEVERAL:
            raise ConfigError(f"{name} is given twice: {found[name][0]} and {value}. Leave one of them out.")
        found.setdefault(name, []).append(value)
        typed.append(word)
    if "prompts" in found:
        if "prompt" in found:
            raise ConfigError("prompt=… and prompts=… are both given: a text, and a file of texts. Leave one out.")
        found["prompt"] = _lines(found.pop("prompts")[0])
    one = {name: values[0] for name, values in found.items() if name not in SEVERAL}
    given: dict[str, Any] = {name: tuple(values) for name, values in found.items() if name in SEVERAL}
    given |= {name: _READ[name](name, value) for name, value in one.items()}
    return Asked(**given, typed=tuple(typed)), rest


def _lines(path: str) -> list[str]:
    """The prompts of a file, one a line; empty lines and those that begin with # are left out."""
    try:
        text = Path(os.path.expanduser(path)).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"prompts={path}: no text file that can be read ({_why(error)}). {_EXAMPLES['prompts']}"
        ) from None
    lines = [line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")]
    if not lines:
        raise ConfigError(f"prompts={path} has no line of text. {_EXAMPLES['prompts']}")
    return lines


def _why(error: Exception) -> str:
    return (error.strerror or "" if isinstance(error, OSError) else "") or type(error).__name__


def _labels(name: str, value: str) -> tuple[str, ...]:
    labels = tuple(part.strip().strip("'\"") for part in value.split(","))
    if "" in labels:
        raise ConfigError(f"cond.label=[{value}] has an empty class. {_EXAMPLES[name]}")
    return labels


def _seeds(name: str, value: str) -> tuple[int, ...]:
    parts = [part.strip() for part in value.strip("[]").split(",")]
    if not all(part.isdecimal() and part.isascii() and int(part) < 2**63 for part in parts):
        raise ConfigError(
            f"seeds={value}: write whole numbers from 0 to 2^63 - 1, as samples.json has them. {_EXAMPLES[name]}"
        )
    return tuple(int(part) for part in parts)


def _share(name: str, value: str) -> float:
    try:
        share = float(value)
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise ConfigError(
            f"{name}={value} must be a number above 0 (nothing changes there) and at most 1 (from noise)."
        )
    return share


def _between(name: str, value: str) -> str:
    if value not in ("seeds", "conditions"):
        raise ConfigError(f"interpolate={value}: it takes seeds or conditions. {_EXAMPLES[name]}")
    return value


_READ: dict[str, Callable[[str, str], Any]] = {
    "label": _labels, "seeds": _seeds, "strength": _share, "variations": _share, "interpolate": _between,
}  # fmt: skip
_EXAMPLES = {
    "prompts": "Give a file with a prompt a line.",
    "label": "Write 'cond.label=[rose,tulip]'.",
    "layout": "Give a JSON file of boxes: layout=boxes.json.",
    "semantic": "Give a picture of classes: semantic=map.png.",
    "depth": "Give a grey picture, black near and white far: depth=depth.png.",
    "image": "Give a picture: image=photo.png.",
    "mask": "Give a picture that is white in the hole: mask=mask.png.",
    "seeds": "Write seeds=1,2.",
    "strength": "Write strength=0.6.",
    "variations": "Write variations=0.5.",
    "interpolate": "Write interpolate=seeds seeds=1,2, or interpolate=conditions prompt=… prompt=….",
}
