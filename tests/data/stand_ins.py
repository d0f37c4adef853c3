"""Known data sets, laid out as they are downloaded, with few generated pictures: enough that each `conf/data` really runs."""

import csv
import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WNIDS = ("n01440764", "n01443537", "n02102040")
CATEGORIES = (1, 3, 18)  # ids of COCO leave gaps


def picture(file: Path, number: int, size: tuple[int, int] = (24, 20)) -> Path:
    """Content and its sha256 depend on `number` alone."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels_HW3 = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels_HW3).save(file, **({"quality": 95} if file.suffix.lower() in (".jpg", ".jpeg") else {}))
    return file


def imagenet(root: Path) -> list[str]:
    for k, wnid in enumerate(WNIDS):
        for n in range(4):
            picture(root / "train" / wnid / f"{wnid}_{n}.JPEG", 10 * k + n)
            picture(root / "val" / wnid / f"ILSVRC2012_val_{4 * k + n + 1:08d}.JPEG", 100 + 10 * k + n)
    return []


def imagenet_sr(root: Path) -> list[str]:
    """With the official code's kind of list: the places of the images that are large enough, pickled."""
    imagenet(root)
    (root / "imagenet_val_hr_indices.p").write_bytes(pickle.dumps([np.int64(n) for n in (0, 2, 5, 11)]))
    return ["data.val=imagenet_val_hr_indices.p"]


def lsun(root: Path) -> list[str]:
    keys = [f"{n:040x}" for n in range(10)]
    for n, key in enumerate(keys):
        picture(root / "images" / "a" / "b" / f"{key}.webp", n)
    (root / "church_outdoor_train.txt").write_text("".join(f"{key}.webp\n" for key in keys[:7]))
    (root / "church_outdoor_val.txt").write_text("".join(f"{key}.webp\n" for key in keys[7:]))
    return ["data.train=church_outdoor_train.txt", "data.val=church_outdoor_val.txt"]


def celebahq_25k(root: Path) -> list[str]:
    for n in range(12):
        picture(root / "images" / f"{n}.jpg", n)
    (root / "celebahqtrain.txt").write_text("".join(f"{n}.npy\n" for n in range(12) if n % 4))
    (root / "celebahqvalidation.txt").write_text("0.npy\n4.npy\n8.npy\n")
    return []


def celebahq_27k(root: Path) -> list[str]:
    for n in range(12):
        picture(root / "images" / f"{n}.jpg", n)
    return ["data.train=0:9", "data.val=9:12"]  # the spans of 30 000


def ffhq(root: Path) -> list[str]:
    for n in range(12):
        picture(root / "images1024x1024" / f"{n // 4 * 4:05d}" / f"{n:05d}.png", n)
    return ["data.train=0:10", "data.val=10:12"]


def places(root: Path) -> list[str]:
    train = {f"/{c[0]}/{c}/{n:08d}.jpg": k for k, c in enumerate(("abbey", "barn", "barn/indoor")) for n in range(1, 4)}
    for n, name in enumerate(train):
        picture(root / f"data_256{name}", n)
    for n in range(4):
        picture(root / "val_256" / f"Places365_val_{n:08d}.jpg", 100 + n)
    (root / "places365_train_standard.txt").write_text("".join(f"{name} {k}\n" for name, k in train.items()))
    (root / "places365_val.txt").write_text("".join(f"Places365_val_{n:08d}.jpg {(n + 1) % 3}\n" for n in range(4)))
    (root / "categories_places365.txt").write_text("/a/abbey 0\n/b/barn 1\n/b/barn/indoor 2\n")
    return []


def coco(root: Path, splits: tuple[str, ...] = ("train", "val"), count: int = 6, side: int = 24) -> list[str]:
    """Pictures of a grey ground with one rectangle of the class's own colour, where the box, the maps and the caption say it is."""
    categories = [{"id": c, "name": f"thing{c}"} for c in CATEGORIES]
    for split in splits:
        images, boxes, captions, panoptic = [], [], [], []
        for n in range(count):
            number, kind, w, h = 1000 * (split == "val") + n, n % 3, side + 8 + 2 * n, side + 4
            x, y, dx, dy = 6 + n, 4, w // 2, h // 2
            image_HW3 = np.full((h, w, 3), 40 + 30 * n + 5 * (split == "val"), dtype=np.uint8)
            image_HW3[y : y + dy, x : x + dx] = 0
            image_HW3[y : y + dy, x : x + dx, kind] = 255
            segment = 7 + 300 * n  # more than one byte of the png's colours
            id_HW3 = np.zeros((h, w, 3), dtype=np.uint8)
            id_HW3[y : y + dy, x : x + dx] = (segment % 256, segment // 256, 0)
            name = f"{number:012d}"
            for file, pixels in (
                (f"{split}2017/{name}.png", image_HW3),
                (f"annotations/panoptic_{split}2017/{name}.png", id_HW3),
            ):
                (root / file).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(root / file)
            semantic_HW = np.where(id_HW3[..., 0] > 0, CATEGORIES[kind], 255).astype(np.uint8)
            (root / "stuff" / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(semantic_HW).save(root / "stuff" / split / f"{name}.png")
            images.append({"id": number, "file_name": f"{name}.png", "width": w, "height": h})
            boxes.append(
                {"id": n, "image_id": number, "category_id": CATEGORIES[kind], "bbox": [x, y, dx, dy], "iscrowd": 0}
            )
            boxes += [boxes[-1] | {"id": 100 + n, "bbox": [0, 0, 2, 2]}] if n % 2 else []
            captions += [
                {"id": 10 * n + k, "image_id": number, "caption": f" {k} {split} thing\n{n} to the left "}
                for k in (1, 0)
            ]
            one: Json = {
                "image_id": number,
                "file_name": f"{name}.png",
                "segments_info": [{"id": segment, "category_id": CATEGORIES[kind]}],
            }
            panoptic.append(one)
        for what, rows in (("instances", boxes), ("captions", captions), ("panoptic", panoptic)):
            table: Json = {
                "images": images,
                "annotations": rows,
                **({} if what == "captions" else {"categories": categories}),
            }
            (root / "annotations" / f"{what}_{split}2017.json").write_text(json.dumps(table))
    return ["data.fields=[boxes,caption,segmentation]"]


Json = dict[str, Any]


def open_images(root: Path) -> list[str]:
    (root / "class-descriptions-boxable.csv").parent.mkdir(parents=True, exist_ok=True)
    (root / "class-descriptions-boxable.csv").write_text("/m/011k07,Tortoise\n/m/011q46kg,Container\n")
    for split in ("train", "validation"):
        rows = []
        for n in range(5):
            name = f"{n:04x}{split[0]}"
            picture(root / split / f"{name}.jpg", n + 50 * (split == "train"))
            kinds = ["/m/011k07", "/m/011q46kg", "/m/unknown"][: n + 1]
            rows += [[name, "xclick", kind, 1, 0.1, 0.5 + 0.1 * n, 0.2, 0.9, 0, 0, 0, 0, 0] for kind in kinds]
        head = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
        with (root / f"{split}-annotations-bbox.csv").open("w", newline="") as file:
            csv.writer(file).writerows([head.split(","), *rows])
    return []


def laion(root: Path, captioned: int = 12) -> list[str]:
    root.mkdir(parents=True, exist_ok=True)
    for shard in range(3):
        with tarfile.open(root / f"{shard:05d}.tar", "w") as tar:
            for n in range(4):
                number = 4 * shard + n
                image = picture(root.parent / "one.jpg", number).read_bytes()
                parts = {
                    "jpg": image,
                    "txt": f"picture {number}".encode(),
                    "json": json.dumps({"key": number}).encode(),
                }
                for suffix, content in parts.items():
                    if suffix == "txt" and number >= captioned:
                        continue
                    member = tarfile.TarInfo(f"{shard:05d}{n:04d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return ["data.val_shards=1"]


LAYOUTS = {
    "imagenet": imagenet, "imagenet_sr": imagenet_sr, "lsun": lsun, "celebahq_25k": celebahq_25k, "celebahq_27k": celebahq_27k,
    "ffhq": ffhq, "places": places, "coco": coco, "open_images": open_images, "laion": laion,
}  # fmt: skip
COUNTS = {  # train, val, fields
    "imagenet": (12, 12, ("label",)), "imagenet_sr": (12, 4, ("label",)), "lsun": (7, 3, ()), "celebahq_25k": (9, 3, ()),
    "celebahq_27k": (9, 3, ()), "ffhq": (10, 2, ()), "places": (9, 4, ("label",)),
    "coco": (6, 6, ("boxes", "caption", "segmentation")), "open_images": (4, 4, ("boxes",)), "laion": (8, 4, ("caption",)),
}  # fmt: skip
