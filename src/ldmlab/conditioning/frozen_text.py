"""Texts as tokens for cross-attention, read by an encoder that was trained elsewhere and stays as it is: CLIP's or T5's.

Shape letters: B batch, L tokens, D features.
"""

import json
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ldmlab.conditioning import outside
from ldmlab.conditioning.base import Cond, Size
from ldmlab.conditioning.text import Length
from ldmlab.conditioning.tokenizer import FromFolder, Ids
from ldmlab.data.parcel import batch_on_device
from ldmlab.errors import ConfigError
from ldmlab.ranges import File

OPTION = "cond.conditioner.model"


class FrozenText(nn.Module):
    """A text field → [B, length, width of the encoder]: the encoder's last hidden states. Its null condition is the empty prompt.

    The encoder is no part of the trained network: checkpoints do not hold it, and its content (not its place) is in the denoiser's id.
    It is loaded when the first text is read; until then only its config is.

    Args:
        model: a local folder in the layout of `transformers` (config.json, model.safetensors, the tokenizer's files), or a name on the hub,
            which is downloaded once.
        length: tokens; shorter texts are padded, longer ones cut.
        mask: whether padding is hidden from the encoder and from the denoiser.

    Raises ConfigError for a model that is neither there nor to be had, that is of another kind, or that takes fewer tokens.
    """

    kinds: ClassVar[tuple[str, ...]]  # `model_type` in config.json
    width: ClassVar[str]  # where the config says the number of features

    concat_channels = 0
    vector_dim = None

    def __init__(self, model: File, length: Length = 77, mask: bool = False, field: str = "caption"):
        super().__init__()
        self.needs, self.field, self.mask, self.length = (field,), field, mask, length
        self.folder = outside.located(model, OPTION)
        self.config = _text_config(self.folder, model, self.kinds)
        most = self.config.get("max_position_embeddings")
        if most is not None and length > most:
            raise ConfigError(
                f"cond.conditioner.length={length}: {model} takes {most} tokens at most. Set {most} or fewer."
            )
        self.files = {
            "model": outside.digest(
                self.folder, (*outside.TOKENIZER, outside.CONFIG, *outside.weights(self.folder, OPTION))
            )
        }
        self.context_dim: int | None = int(self.config[self.width])
        self.register_buffer("_here", torch.empty(0), persistent=False)  # says the device
        self._tokenizer: FromFolder | None = None
        self._loaded: dict[torch.device, nn.Module] = {}  # a dict, so that its weights are not the denoiser's

    def encoder(self, shapes_only: bool) -> nn.Module:
        """The encoder of `transformers` from the folder; without contents where only shapes count."""
        raise NotImplementedError

    def forward(self, batch: dict[str, Any]) -> Cond:
        """Of batch[field], a list of B texts."""
        return self._cond(batch[self.field])

    def null(self, batch_size: int, size: Size, device: torch.device | str) -> Cond:
        """The empty prompt, read once for all examples."""
        if torch.device(device).type == "meta":
            nothing_BL = torch.zeros(1, self.length, dtype=torch.int64, device="meta")
            return self._read(Ids(nothing_BL, nothing_BL == 0), torch.device("meta")).repeat(batch_size)
        return self._cond([""]).repeat(batch_size)

    def _cond(self, texts: list[str]) -> Cond:
        if self._tokenizer is None:
            self._tokenizer = FromFolder(self.folder, self.length, OPTION)
        return self._read(self._tokenizer(texts), self._here.device)  # type: ignore[arg-type]

    @torch.no_grad()
    def _read(self, ids: Ids, device: torch.device) -> Cond:
        if device not in self._loaded:
            made = self.encoder(device.type == "meta")
            self._loaded[device] = (made if device.type == "meta" else made.to(device)).requires_grad_(False).eval()
        there = batch_on_device(ids._asdict(), device)
        seen_BL: Tensor | None = there["seen_BL"] if self.mask else None
        attended_BL = None if seen_BL is None or device.type == "meta" else seen_BL.long()
        found = self._loaded[device](input_ids=there["id_BL"], attention_mask=attended_BL)
        return Cond(tokens_BLD=found.last_hidden_state.float(), seen_BL=seen_BL)


class ClipText(FrozenText):
    """The text half of a CLIP model (Radford et al. 2103.00020), before its pooling and projection; 77 tokens."""

    kinds: ClassVar[tuple[str, ...]] = ("clip", "clip_text_model")
    width: ClassVar[str] = "hidden_size"

    def encoder(self, shapes_only: bool) -> nn.Module:
        from transformers import CLIPTextConfig, CLIPTextModel

        return outside.model(CLIPTextConfig, CLIPTextModel, self.folder, shapes_only, OPTION)


class T5Text(FrozenText):
    """The encoder of a T5 model (Raffel et al. 1910.10683; for images: Saharia et al. 2205.11487)."""

    kinds: ClassVar[tuple[str, ...]] = ("t5",)
    width: ClassVar[str] = "d_model"

    def encoder(self, shapes_only: bool) -> nn.Module:
        from transformers import T5Config, T5EncoderModel

        return outside.model(T5Config, T5EncoderModel, self.folder, shapes_only, OPTION)


def _text_config(folder: Path, name: str, kinds: tuple[str, ...]) -> dict[str, Any]:
    """The text encoder's part of config.json. ConfigError for a model of another kind."""
    found: dict[str, Any] = json.loads((folder / outside.CONFIG).read_text(encoding="utf-8"))
    if found.get("model_type") not in kinds:
        raise ConfigError(
            f"{OPTION}={name}: its config.json says model_type={found.get('model_type')!r}, and this cond takes {' or '.join(kinds)}. "
            "Use cond=text_clip for CLIP and cond=text_t5 for T5."
        )
    return {**found, **found.get("text_config", {})}
