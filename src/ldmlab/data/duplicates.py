"""Pictures with equal content in two splits: whoever trains on one of them has seen what it is scored on."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Protocol, runtime_checkable

from ldmlab.data.base import ImageDataset, Split

_SHOWN = 3


@runtime_checkable
class KnowsContents(Protocol):
    """A data set that knows the sha256 of its pictures, or has it from whoever made it."""

    def in_two_splits(self, other: ImageDataset) -> list[list[str]]:
        """Groups of paths with equal content in different splits, of this set and the `other` split of it; each group sorted."""
        ...


def in_two_splits(by_split: Mapping[Split, Iterable[tuple[str, str]]]) -> list[list[str]]:
    """Groups of paths with equal content in different splits, sorted; from (path, sha256) of each split's pictures."""
    groups: dict[str, list[tuple[Split, str]]] = defaultdict(list)
    for split, pictures in by_split.items():
        for path, sha256 in pictures:
            groups[sha256].append((split, path))
    return sorted(
        sorted(path for _, path in group) for group in groups.values() if len({split for split, _ in group}) > 1
    )


def notes(data: ImageDataset, val: ImageDataset) -> list[str]:
    """What a plan says of pictures that two splits share; [] where there are none, or where contents are not known."""
    if not isinstance(data, KnowsContents):
        return []
    return [sentence(groups)] if (groups := data.in_two_splits(val)) else []


def sentence(groups: list[list[str]]) -> str:
    """How many there are, the first three, what it does to results, and the way out."""
    shown = "; ".join(" = ".join(group) for group in groups[:_SHOWN])
    more = f"; and {len(groups) - _SHOWN} more" if len(groups) > _SHOWN else ""
    what = "1 picture lies" if len(groups) == 1 else f"{len(groups)} pictures lie"
    return (
        f"{what} in two splits with equal content: {shown}{more}. What is trained on there is scored as if it were new. "
        "Remove one of each, or go on and know it."
    )
