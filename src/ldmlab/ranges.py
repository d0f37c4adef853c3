"""What an option says of itself beyond its type: `width: Annotated[int, Range(at_least=1, at_most=16_384)] = 128`.

The same words serve the dataclasses of `config/schema.py` and the constructors of parts, a user's own parts included;
`config/values.py` reads them all. Each rule has `refuse(value)`: None, or what the value must be, to follow "must be".
A number without a rule must be finite; a whole number lies within 2^53, where a float still tells neighbours apart.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

LARGEST = 2**53
MOST = 10**13  # images of a training
FEWEST = 8  # images that a point of a training is named by


@dataclass(frozen=True)
class Range:
    """A number between two ends; an end that is None is open. `infinite`: inf itself may be given."""

    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    below: float | None = None
    infinite: bool = False

    def refuse(self, value: Any) -> str | None:
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            return None  # its type is wrong, and that is said in other words
        inside = (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )
        return None if inside and not math.isnan(value) else self.words

    @property
    def words(self) -> str:
        low, high = self.at_least, self.at_most
        if low is not None and high is not None and self.above is None and self.below is None:
            return f"between {_number(low)} and {_number(high)}"
        ends = [
            ("at least", low),
            ("greater than", self.above),
            ("at most", high),
            ("less than", self.below),
        ]
        return " and ".join(f"{word} {_number(end)}" for word, end in ends if end is not None) or "a number"


@dataclass(frozen=True)
class Moment(Range):
    """A point of a training: a fraction of it between the two ends, or a count of images, `FEWEST` or more.

    A smaller number above 1 is taken for a slip: 2 typed for 0.2.
    """

    def refuse(self, value: Any) -> str | None:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if number and FEWEST <= value <= MOST and value == math.floor(value):
            return None
        wrong = super().refuse(value)
        return wrong and f"{wrong} (a fraction of the training) or a whole number of images, {FEWEST} or more"


@dataclass(frozen=True)
class Choices:
    """One of a few words; "true" and "false" also stand for the values. (OmegaConf refuses Literal in a dataclass;
    constructors of parts use Literal.)
    """

    words: tuple[str, ...]

    def refuse(self, value: Any) -> str | None:
        word = str(value).lower() if isinstance(value, bool) else value
        return None if word in self.words else f"one of {', '.join(self.words)}"


@dataclass(frozen=True)
class Items:
    """How many items a list has, and whether each may stand in it once only."""

    at_least: int = 0
    at_most: int = 1000
    distinct: bool = False
    what: str = ""  # the words for all of it: "two numbers in [0, 1)"

    def refuse(self, value: Any) -> str | None:
        items = list(value)
        if self.at_least <= len(items) <= self.at_most and not (self.distinct and _repeats(items)):
            return None
        if self.what:
            return self.what
        if self.at_least > len(items):
            return f"a list of at least {self.at_least}"
        return f"a list of at most {self.at_most}" if len(items) > self.at_most else "a list that names nothing twice"


@dataclass(frozen=True)
class Rising:
    """[low, high] with low < high, for an interval; `at_least` bounds low, `at_most` high."""

    at_least: float = 0.0
    at_most: float = math.inf

    def refuse(self, value: Any) -> str | None:
        low_high = list(value)
        if len(low_high) == 2 and self.at_least <= low_high[0] < low_high[1] <= self.at_most:
            return None
        end = "" if math.isinf(self.at_most) else f" <= {_number(self.at_most)}"
        return f"[low, high] with {_number(self.at_least)} <= low < high{end}"


@dataclass(frozen=True)
class OneOrMany:
    """A number, or a list of one per channel; null is none."""

    range: Range

    def refuse(self, value: Any) -> str | None:
        if value is None:
            return None
        many = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        if not many or not all(isinstance(n, (int, float)) and not isinstance(n, bool) for n in many):
            return "a number, or a list of one per latent channel"
        if not all(math.isfinite(n) for n in many):
            return "finite"
        return next((wrong for n in many if (wrong := self.range.refuse(n)) is not None), None)


@dataclass(frozen=True)
class AutoOr:
    """The word auto, or a whole number."""

    range: Range

    def refuse(self, value: Any) -> str | None:
        if value == "auto":
            return None
        whole = isinstance(value, int) and not isinstance(value, bool) and self.range.refuse(value) is None
        return None if whole else f"auto, or a whole number {self.range.words}"


@dataclass(frozen=True)
class FilePath:
    """A file, a folder or an address; no longer than file systems take, and not empty."""

    def refuse(self, value: Any) -> str | None:
        if not isinstance(value, str):
            return None
        if not value.strip():
            return "a path that is not empty (the current directory is a dot)"
        if "\0" in value or len(value.encode(errors="surrogateescape")) > 4096:
            return "a path of at most 4,096 bytes"
        remote = value.startswith("pipe:") or "://" in value
        if not remote and any(len(name.encode(errors="surrogateescape")) > 255 for name in value.split("/")):
            return "a path whose folders and file have names of at most 255 bytes"
        return None


@dataclass(frozen=True)
class PictureSize:
    """HEIGHTxWIDTH in pixels, or one number for a square."""

    most: int = 16_384

    def refuse(self, value: Any) -> str | None:
        if value is None or ((found := picture_size(str(value))) and all(1 <= side <= self.most for side in found)):
            return None
        return f"HEIGHTxWIDTH in pixels, each between 1 and {_number(self.most)}, such as 512x1024"


def picture_size(text: str) -> tuple[int, int] | None:
    """(height, width) of "512x1024" or of "512"; None for other texts."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        return None
    return int(sides[0]), int(sides[-1])


@dataclass(frozen=True)
class Part:
    """A node with a `_target_`: chosen by a group, never typed as one word. `null`: there may be none."""

    null: bool = False

    def refuse(self, value: Any) -> str | None:
        if (value is None and self.null) or (isinstance(value, Mapping) and "_target_" in value):
            return None
        return "a part with a _target_, which a group chooses" + (", or null" if self.null else "")


class Given:
    """A constructor argument that follows from other parts. `build.py` passes it; as an option it would be a second truth."""


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) and abs(value) < 10**6 else f"{value:g}"


def _repeats(items: list[Any]) -> bool:
    return any(item in items[:i] for i, item in enumerate(items))


Seed = Annotated[int, Range(at_least=0, at_most=2**63 - 1)]
NumpySeed = Annotated[int, Range(at_least=0, at_most=2**32 - 1)]
Positive = Annotated[float, Range(above=0, at_most=1e12)]
Fraction = Annotated[float, Range(at_least=0, at_most=1)]
Share = Annotated[float, Range(at_least=0, below=1)]  # a probability or decay that must leave something
Weight = Annotated[float, Range(at_least=0, at_most=1e6)]  # of a term of a loss
Scale = Annotated[float, Range(above=0, at_most=10_000)]  # of a guidance
Images = Annotated[int, Range(at_least=1, at_most=MOST)]  # a duration
MaybeImages = Annotated[int, Range(at_least=0, at_most=MOST)]
Batch = Annotated[int, Range(at_least=1, at_most=2**24)]
Pixels = Annotated[int, Range(at_least=1, at_most=16_384)]  # a side
Width = Annotated[int, Range(at_least=1, at_most=16_384)]  # channels
Depth = Annotated[int, Range(at_least=1, at_most=1_000)]  # blocks, heads
Steps = Annotated[int, Range(at_least=1, at_most=1_000_000)]
ImageChannels = Literal[1, 3, 4]  # grey, RGB, RGB and opacity
ImageBits = Literal[8, 16]  # of each channel
ClassCount = Annotated[int, Range(at_least=1, at_most=65_535)]
PixelValue = Annotated[int, Range(at_least=0, at_most=65_535)]
FewObjects = Annotated[int, Range(at_least=0, at_most=1_000)]  # boxes of a picture at least
Codes = Annotated[int, Range(at_least=2, at_most=2**24)]
Interval = Annotated[list[float], Rising()]
Multipliers = Annotated[list[Annotated[int, Range(at_least=1, at_most=1_024)]], Items(at_least=1, at_most=12)]
Channels = Annotated[list[Annotated[int, Range(at_least=1, at_most=16_384)]], Items(at_least=1, at_most=12)]
Sizes = Annotated[list[Annotated[int, Range(at_least=1, at_most=16_384)]], Items(at_most=100)]
File = Annotated[str, FilePath()]
