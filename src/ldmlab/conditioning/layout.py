"""Layouts, which objects stand where, as tokens for cross-attention (the paper's layout-to-image models).

Shape letters: B batch, K boxes, N objects, L tokens, D features.
"""

import math
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from ldmlab.conditioning.base import Cond, Size
from ldmlab.errors import ConfigError
from ldmlab.networks.token_transformer import TokenTransformer
from ldmlab.randomness import Draws
from ldmlab.ranges import Depth, Given, Range, Width


class Layout(nn.Module):
    """Boxes [B, K, 5] → [B, 3 · objects + 2, dim]; its null condition is the layout without objects.

    Published (docs/paper.md#text-and-layout; ObjectsBoundingBoxConditionalBuilder of taming/data/conditional_builder): 30 objects, each its
    class, top left and bottom right corner, then the two corners of the crop: 92 tokens from a vocabulary of 8192, read by a transformer
    of 16 blocks and 512 features. See `tokens_of`.

    Args:
        vocabulary: given by the assembly.
        shuffle: objects come in a new order at each visit of training; in samples in the order of the data, the published code shuffles
            there too.

    Raises ConfigError for a field that has no boxes, and a vocabulary that is too small for its classes.
    """

    concat_channels = 0
    vector_dim = None
    of_the_whole = (
        True  # its tokens say where things are in the whole picture, so that a window cannot have a part of them
    )

    def __init__(
        self,
        vocabulary: Annotated[dict[str, int | None], Given],
        dim: Width = 512,
        depth: Depth = 16,
        heads: Depth = 8,
        objects: Annotated[int, Range(at_least=1, at_most=1_024)] = 30,
        vocab_size: Annotated[int, Range(at_least=4, at_most=2**24)] = 8192,
        shuffle: bool = True,
        field: str = "boxes",
    ):
        super().__init__()
        classes = vocabulary.get(field, 0)
        if classes is None:
            raise ConfigError(f"cond.conditioner.field={field} is no field of boxes. Use cond.conditioner.field=boxes.")
        if classes >= vocab_size:
            raise ConfigError(
                f"cond.conditioner.vocab_size={vocab_size}: the data has {classes} classes, a token each, and one more token means "
                f"no object. Set {classes + 1} or more."
            )
        self.needs, self.field, self.objects, self.vocab_size, self.shuffle = (
            (field,),
            field,
            objects,
            vocab_size,
            shuffle,
        )
        self.context_dim: int | None = dim
        self.length = 3 * objects + 2
        self.transformer = TokenTransformer(vocab_size, self.length, dim, depth, heads)

    def forward(self, batch: dict[str, Any]) -> Cond:
        """Of batch[field], float [B, K, 5] as `data.fields` has it; "position", int64 [B], is there in training alone."""
        boxes_BK5 = batch[self.field]
        if self.shuffle and "position" in batch:
            boxes_BK5 = shuffled(boxes_BK5, batch["position"])
        return self._cond(tokens_of(boxes_BK5, self.objects, self.vocab_size))

    def null(self, batch_size: int, size: Size, device: torch.device | str) -> Cond:
        """No object in the whole image, read once for all examples."""
        empty_B05 = torch.empty(1, 0, 5, device=device)
        return self._cond(tokens_of(empty_B05, self.objects, self.vocab_size)).repeat(batch_size)

    def _cond(self, id_BL: Tensor) -> Cond:
        return Cond(tokens_BLD=self.transformer(id_BL))


def tokens_of(boxes_BK5: Tensor, objects: int, vocab_size: int) -> Tensor:
    """Token numbers of layouts, int64 [B, 3 · objects + 2].

    An object is (class, top left, bottom right), a corner one number: a grid of ⌊√vocab_size⌋ lines each way is counted row by row,
    and places are rounded to it. The number vocab_size - 1, three times, stands for no object. The last two numbers are the corners of
    the crop: here always the whole image, for boxes are those of the image that is seen (`fields.cropped_boxes`).

    boxes_BK5: class and x0, y0, x1, y1 as fractions of the side, unused rows -1. Those after the first `objects` used ones are left out.
    The attributes of objects that the published code adds to the class (a group, occluded …) are not in `data.fields`.
    """
    none, lines = vocab_size - 1, math.isqrt(vocab_size)
    kind_BK, x0, y0, x1, y1 = boxes_BK5.unbind(-1)
    corners = [(y * (lines - 1)).round() * lines + (x * (lines - 1)).round() for x, y in ((x0, y0), (x1, y1))]
    triple_BK3 = torch.stack([kind_BK, *corners], dim=-1).long()
    used_BK = boxes_BK5[..., 0] >= 0
    triple_BK3 = torch.where(used_BK[..., None], triple_BK3, none)
    order_BK = (~used_BK).long().argsort(dim=1, stable=True)  # used rows first
    triple_BK3 = triple_BK3.gather(1, order_BK[..., None].expand_as(triple_BK3))[:, :objects]
    B, missing = len(triple_BK3), objects - triple_BK3.shape[1]
    id_BL = nn.functional.pad(triple_BK3, (0, 0, 0, missing), value=none).flatten(1)
    crop_2 = torch.arange(2, device=id_BL.device) * (lines * lines - 1)
    return torch.cat([id_BL, crop_2.expand(B, 2)], dim=1)


def shuffled(boxes_BK5: Tensor, position_B: Tensor) -> Tensor:
    """Each example's boxes in an order of their own: a function of the position in the run."""
    order_BK = Draws(0).rand("layout", position_B, boxes_BK5.shape[1:2], boxes_BK5.device).argsort(dim=1, stable=True)
    return boxes_BK5.gather(1, order_BK[..., None].expand_as(boxes_BK5))
