"""OpenImages as it is downloaded: pictures and boxes in csv files (https://storage.googleapis.com/openimages/web/download_v7.html).

Shape letters: N boxes.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ldmlab.data import fields as declare
from ldmlab.data.base import SPLITS, Split
from ldmlab.data.beside import Boxes
from ldmlab.data.files import list_pictures
from ldmlab.data.listing import Listing
from ldmlab.data.pictures import Layout, PictureFiles
from ldmlab.errors import DataError
from ldmlab.ranges import Depth, FewObjects, File

NAMES: dict[Split, str] = {"train": "train", "val": "validation", "test": "test"}
CORNERS = ["XMin", "YMin", "XMax", "YMax"]


@dataclass(frozen=True)
class OpenImagesLayout(Layout):
    """Pictures with the field boxes; `{split}` in a path is train, validation or test.

    images:   folder of the pictures, named by their ids.
    boxes:    csv with ImageID, LabelName, XMin, XMax, YMin, YMax; corners are fractions of the picture.
    classes:  csv of LabelName and name, without a head: the classes, in its order. Boxes of others are left out.
    objects:  boxes of a sample at most, the largest ones. min_objects: pictures with fewer boxes are left out.
    """

    images: File = "{split}"
    boxes: File = "{split}-annotations-bbox.csv"
    classes: File = "class-descriptions-boxable.csv"
    objects: Depth = 30
    min_objects: FewObjects = 2

    def listing(self, split: Split | None = None) -> Listing:
        own = _Csv(self.place, self.images, self.boxes, self.classes)
        there = [one for one in SPLITS if (self.place / own.path(self.images, one)).is_dir()]
        paths: dict[Split, list[str]] = {one: [] for one in SPLITS}
        rows: dict[str, np.ndarray] = {}
        for one in there if split is None else [split]:
            found = own.rows(one)
            rows |= found
            paths[one] = sorted(path for path, boxes_N5 in found.items() if len(boxes_N5) >= self.min_objects)
        field = declare.boxes("boxes", len(own.numbers()), self.objects)
        return Listing(self.place, paths, None, (), f"the folders {self.images}", True, (Boxes(field, rows, {}),))


class OpenImages(PictureFiles):
    """OpenImages; options: `OpenImagesLayout`."""

    layout = OpenImagesLayout


@dataclass(frozen=True)
class _Csv:
    root: Path
    images: str
    boxes: str
    classes: str

    @staticmethod
    def path(pattern: str, split: Split) -> str:
        return pattern.format(split=NAMES[split])

    def numbers(self) -> dict[str, int]:
        """Class number of each label name."""
        import pandas

        table = _read(self.root / self.classes, "data.classes", header=None)
        return {str(name): k for k, name in enumerate(pandas.unique(table.iloc[:, 0]))}

    def rows(self, split: Split) -> dict[str, np.ndarray]:
        """Picture → float32 [N, 5], class and corners, of all pictures of the split."""
        folder = self.path(self.images, split)
        if not (self.root / folder).is_dir():
            raise DataError(f"data.root={self.root} has no folder {folder}. Give data.images.")
        table = _read(
            self.root / self.path(self.boxes, split), "data.boxes", usecols=["ImageID", "LabelName", *CORNERS]
        )
        number = self.numbers()
        table = table[table["LabelName"].isin(list(number))]
        kind_N = table["LabelName"].map(number).to_numpy(dtype=np.float32)
        row_N5 = np.concatenate([kind_N[:, None], table[CORNERS].to_numpy(dtype=np.float32)], axis=1)
        places = {str(image): index for image, index in table.groupby("ImageID").indices.items()}
        none_05 = np.empty((0, 5), dtype=np.float32)
        paths = list_pictures(self.root / folder)
        return {f"{folder}/{p}": row_N5[places[Path(p).stem]] if Path(p).stem in places else none_05 for p in paths}


def _read(file: Path, option: str, **how: object):  # type: ignore[no-untyped-def]  # pandas has no types here
    import pandas

    try:
        return pandas.read_csv(file, **how)
    except OSError as error:
        raise DataError(f"{option}: {file} cannot be read: {error.strerror}. Give its path below data.root.") from error
    except ValueError as error:  # a parser's error, or a column that is not there
        raise DataError(f"{option}: {file} is not the csv of OpenImages: {error}. Copy it again.") from error
