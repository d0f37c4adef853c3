"""CLIP as a judge of pictures and texts: both as unit vectors of one space, and how near they are.

Shape letters: B batch, N images or texts, C channels, H W pixels, D features.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ldmlab.conditioning import outside
from ldmlab.conditioning.tokenizer import FromFolder

AT_ONCE = 64
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP's training images


class Clip:
    """Unit embeddings of images and texts, by a CLIP model from a folder. Raises ConfigError, naming `option`, for a folder without one.

    similarity_scale: by which CLIP multiplies a cosine to have a log-probability, up to a constant.
    """

    def __init__(self, folder: Path, option: str, device: torch.device | str = "cpu"):
        from transformers import CLIPConfig, CLIPModel

        net: Any = outside.model(CLIPConfig, CLIPModel, folder, False, option)
        self.net, self.side = net.requires_grad_(False).eval().to(device), net.config.vision_config.image_size
        self.tokenizer = FromFolder(folder, net.config.text_config.max_position_embeddings, option)
        self.similarity_scale = float(net.logit_scale.exp())
        self.mean_311, self.deviation_311 = (
            torch.tensor(numbers, device=device)[:, None, None] for numbers in (MEAN, DEVIATION)
        )

    def embedded(self, image_BCHW: Tensor) -> Tensor:
        """[B, D] of images [B, 3, H, W] in [0, 1], which are resized to the model's size by an antialiased bicubic; differentiable."""
        image_BCHW = F.interpolate(image_BCHW, (self.side, self.side), mode="bicubic", antialias=True).clamp(0, 1)
        hidden = self.net.vision_model(pixel_values=(image_BCHW - self.mean_311) / self.deviation_311).pooler_output
        return F.normalize(self.net.visual_projection(hidden), dim=1)

    @torch.no_grad()
    def images(self, read: Callable[[list[int]], Tensor], n: int) -> Tensor:
        """[N, D] of images 0 … n-1; `read(rows)` gives uint8 [B, H, W, 3]."""
        parts = []
        for begin in range(0, n, AT_ONCE):
            image_BHWC = read(list(range(begin, min(begin + AT_ONCE, n)))).to(self.mean_311.device)
            parts.append(self.embedded(image_BHWC.permute(0, 3, 1, 2).float() / 255))
        return torch.cat(parts)

    @torch.no_grad()
    def texts(self, texts: list[str]) -> Tensor:
        """[N, D]."""
        parts = []
        for begin in range(0, len(texts), AT_ONCE):
            ids, device = self.tokenizer(texts[begin : begin + AT_ONCE]), self.mean_311.device
            hidden = self.net.text_model(
                input_ids=ids.id_BL.to(device), attention_mask=ids.seen_BL.long().to(device)
            ).pooler_output
            parts.append(F.normalize(self.net.text_projection(hidden), dim=1))
        return torch.cat(parts)


def content(folder: Path, option: str) -> str:
    """sha256 (hex) of all that decides its embeddings. Raises ConfigError for a folder without weights."""
    return outside.digest(folder, (*outside.TOKENIZER, outside.CONFIG, *outside.weights(folder, option)))
