"""A folder of pictures as a data set: classes from sub-folders, splits that never mix, damaged files named.

Shape letters: H W pixels, N images of the split.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ldmlab.data.base import SPLITS, Split
from ldmlab.data.beside_folder import Neighbours
from ldmlab.data.files import SUFFIXES, list_pictures
from ldmlab.data.listing import Listing, check_fractions, divided, learnt_by_heart
from ldmlab.data.pictures import Layout, PictureFiles
from ldmlab.errors import DataError
from ldmlab.ranges import ClassCount, File, PixelValue, Share

Labels = Literal["auto", "folders", "none"]
_SPLIT_FOLDERS: dict[str, Split] = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def list_folder(
    root: str | Path, val_fraction: float, test_fraction: float, labels: Labels, neighbours: Neighbours | None = None
) -> Listing:
    """Finds pictures, splits, classes and what is beside them below `root`; DataError naming `data.root` where that is not possible."""
    neighbours = neighbours or Neighbours()
    place = Path(root).expanduser()
    check_fractions(val_fraction, test_fraction)
    if not place.exists():
        raise DataError(
            f"data.root={root}: no such folder. Give the folder that holds the pictures (or train/ and val/)."
        )
    if not place.is_dir():
        raise DataError(f"data.root={root} is a file, not a folder. Give the folder that holds the pictures.")
    paths = neighbours.without(place, list_pictures(place))
    if not paths:
        state = "is empty" if not any(place.iterdir()) else "holds no pictures"
        raise DataError(
            f"data.root={root} {state}. Pictures are files named {', '.join(f'*{s}' for s in SUFFIXES)}, in the folder "
            "itself or in sub-folders (hidden ones are not looked at); for WebDataset tars use data=shards, for an lmdb data=lsun."
        )
    fixed = _split_folders(place, paths)
    if fixed is None:
        by_split, rule = divided(paths, val_fraction, test_fraction)
        depth = 0
    else:
        by_split, depth = fixed, 1
        rule = "the folders train/, val/ and test/ of the root"
    class_of = _classes(place, paths, labels, depth)
    names = () if class_of is None else tuple(sorted(set(class_of.values())))
    if class_of is not None and fixed is not None:
        known = {class_of[path] for path in by_split["train"]}
        if strange := sorted(set(names) - known):
            raise DataError(
                f"data.root={root}: the classes {', '.join(strange[:5])} appear in val/ or test/ but not in train/. "
                "Give each split the same class folders, or set data.labels=none."
            )
    return Listing(place, by_split, class_of, names, rule, fixed is not None, neighbours.read(place, paths))


def _split_folders(root: Path, paths: list[str]) -> dict[Split, list[str]] | None:
    """Pictures per split when the root has train/ beside val/ or test/; None when the root is not split by folders."""
    tops = {path.split("/", 1)[0] if "/" in path else "" for path in paths}
    splits = tops & set(_SPLIT_FOLDERS)
    if "train" not in splits or (len(splits) == 1 and len(tops) > 1):
        return None  # no train/, or a class that happens to be called "train" (COCO has one)
    if other := sorted(tops - splits):
        where = (
            "pictures beside them"
            if other == [""]
            else f"other folders: {', '.join(name for name in other[:5] if name)}"
        )
        raise DataError(
            f"data.root={root} has the split folders {', '.join(sorted(splits))} and {where}. Move those away, "
            "or rename the split folders if they are classes."
        )
    by_split: dict[Split, list[str]] = {split: [] for split in SPLITS}
    origin: dict[Split, str] = {}
    for path in paths:
        top = path.split("/", 1)[0]
        split = _SPLIT_FOLDERS[top]
        if origin.setdefault(split, top) != top:
            raise DataError(
                f"data.root={root} has both {origin[split]}/ and {top}/, which mean the same split. Remove one."
            )
        by_split[split].append(path)
    return by_split


def _classes(root: Path, paths: list[str], labels: Labels, depth: int) -> dict[str, str] | None:
    """Class of each path: the folder name at `depth`; None when the set has no labels."""
    if labels == "none":
        return None
    parts = {path: path.split("/") for path in paths}
    loose = [path for path, names in parts.items() if len(names) < depth + 2]
    if not loose:
        return {path: names[depth] for path, names in parts.items()}
    if labels == "auto" and len(loose) == len(paths):
        return None
    raise DataError(
        f"data.root={root}: {len(loose)} of {len(paths)} pictures lie in no class folder, the first is {loose[0]}. "
        "Move them into class folders, or set data.labels=none to use all pictures without labels."
    )


@dataclass(frozen=True)
class FolderLayout(Layout):
    """Pictures below `root`, in class folders or not.

    labels:         auto: the sub-folder names are the classes when every picture lies in one, and there are none when
                    no picture does; folders: they must be; none: sub-folders mean nothing.
    val_fraction,
    test_fraction:  of a root without train/ and val/ folders, chosen by a hash of each picture's relative path.
    captions:       txt, a text file beside each picture; or a json below root, {picture: text} or COCO's: the field caption.
    segmentation,
    depth, mask:    folders of maps with the pictures' paths (png, npy): the fields of these names.
    classes:        of a segmentation; unlabelled: its value for no class, which becomes the last class, number `classes`.
    overfit:        val and test are the training pictures themselves: to see what is learnt by heart.
    """

    val_fraction: Share = 0.1
    test_fraction: Share = 0.0
    labels: Labels = "auto"
    captions: File | None = None
    segmentation: File | None = None
    depth: File | None = None
    mask: File | None = None
    classes: ClassCount | None = None
    unlabelled: PixelValue | None = None
    overfit: bool = False
    flip: bool = field(default=True, kw_only=True)

    def listing(self, split: Split | None = None) -> Listing:
        neighbours = Neighbours(self.captions, self.segmentation, self.depth, self.mask, self.classes, self.unlabelled)
        fractions = (0.0, 0.0) if self.overfit else (self.val_fraction, self.test_fraction)
        listing = list_folder(self.root, *fractions, self.labels, neighbours)
        return learnt_by_heart(listing) if self.overfit else listing


class Folder(PictureFiles):
    """A folder of pictures; options: `FolderLayout`."""

    layout = FolderLayout
