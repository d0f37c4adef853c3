"""How the fields beside a picture stand in a shard: one member a field, behind the picture's key.

    label   <key>.cls                    a decimal integer
    text    <key>.txt (the caption)      UTF-8; another text <key>.<field>.txt
    boxes   <key>.<field>.json           rows of class, x0, y0, x1, y1 as fractions of the stored picture's side
    classes <key>.<field>.png            8 or 16 bits, the pixel's value is the class
    map     <key>.<field>.npy            float32 [H, W]

Shape letters: H W pixels, N boxes.
"""

import io
import json
from typing import Any

import numpy as np
from PIL import Image

from ldmlab.data.fields import Field

CAPTION = "caption"
_SUFFIX = {"text": "txt", "boxes": "json", "classes": "png", "map": "npy"}


def extension_of(field: Field) -> str:
    """Of the field's member, in lower case: WebDataset's extension is all after the first dot of a file's name."""
    if field.kind == "label":
        return "cls"
    suffix = _SUFFIX[field.kind]
    return suffix if (field.name, suffix) == (CAPTION, "txt") else f"{field.name}.{suffix}".lower()


def encoded(field: Field, value: Any) -> bytes:
    """A field's value in the stored square (`View.of`) as the content of its member; the same value gives the same bytes."""
    if field.kind == "text":
        return str(value).encode()
    out = io.BytesIO()
    if field.kind == "boxes":
        used = [[int(row[0]), *map(float, row[1:])] for row in value if row[0] >= 0]
        return json.dumps(used, separators=(",", ":")).encode()
    if field.kind == "classes":
        Image.fromarray(value.astype(np.uint8 if field.values is not None and field.values <= 256 else np.uint16)).save(
            out, "PNG"
        )
    else:
        np.save(out, value.astype(np.float32), allow_pickle=False)
    return out.getvalue()


def decoded(field: Field, content: bytes) -> Any:
    """The value for the whole stored picture, as `View.of` takes it. Raises what damaged content raises (ValueError, OSError …)."""
    if field.kind == "text":
        return content.decode()
    if field.kind == "boxes":
        return np.array(json.loads(content), dtype=np.float32).reshape(-1, 5)
    if field.kind == "classes":
        with Image.open(io.BytesIO(content)) as opened:
            number_HW = np.asarray(opened)
        return number_HW.astype(np.uint8 if number_HW.dtype == np.uint8 else np.int32)
    return np.load(io.BytesIO(content), allow_pickle=False)
