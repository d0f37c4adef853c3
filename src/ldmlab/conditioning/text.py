"""Texts as tokens for cross-attention, read by a transformer that is trained along with the denoiser (the paper's text-to-image model).

Shape letters: B batch, L tokens, D features.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from ldmlab.conditioning import outside
from ldmlab.conditioning.base import Cond, Size
from ldmlab.conditioning.tokenizer import BYTES, FromFolder, Ids, Tokenizer, Trained
from ldmlab.data.parcel import batch_on_device
from ldmlab.errors import ConfigError
from ldmlab.networks.token_transformer import TokenTransformer
from ldmlab.ranges import Depth, File, Given, Range, Width

OPTION = "cond.conditioner.tokenizer"
Length = Annotated[int, Range(at_least=2, at_most=4_096)]  # the two are start and end


class Text(nn.Module):
    """A text field → [B, length, dim]. Its null condition is the empty prompt.

    Published (BERTEmbedder of ldm/modules/encoders/modules.py, docs/paper.md#text-and-layout): 77 tokens of 1280 features, depth 32,
    8 heads, the tokenizer of bert-base-uncased with 30 522 tokens; shorter texts are padded and nothing hides the padding.

    Args:
        trained_tokenizer: given by the assembly.
        vocab_size: rows of the token table; a tokenizer that is trained on the captions of the data has at most so many tokens.
        tokenizer: folder of a BERT or CLIP tokenizer; null: one is trained.
        mask: whether padding is hidden from the transformer and from the denoiser.

    Raises ConfigError for a tokenizer that cannot be read or has more tokens than `vocab_size`.
    """

    concat_channels = 0
    vector_dim = None

    def __init__(
        self,
        trained_tokenizer: Annotated[Path | None, Given] = None,
        dim: Width = 1280,
        depth: Depth = 32,
        heads: Depth = 8,
        length: Length = 77,
        vocab_size: Annotated[int, Range(at_least=BYTES + 3, at_most=2**24)] = 30_522,
        tokenizer: File | None = None,
        mask: bool = False,
        field: str = "caption",
    ):
        super().__init__()
        self.needs, self.field, self.mask, self.vocab_size, self.length = (field,), field, mask, vocab_size, length
        self.context_dim: int | None = dim
        self.tokenizer: Tokenizer | None = None
        self.files: dict[str, str] = {}  # option → what its file holds, for ids
        if tokenizer is not None:
            folder = outside.folder(tokenizer, OPTION)
            self.tokenizer, self.files = (
                FromFolder(folder, length, OPTION),
                {"tokenizer": outside.digest(folder, outside.TOKENIZER)},
            )
            if self.tokenizer.size > vocab_size:
                raise ConfigError(
                    f"{OPTION}={tokenizer} has {self.tokenizer.size} tokens, and cond.conditioner.vocab_size={vocab_size} rows. "
                    f"Set cond.conditioner.vocab_size={self.tokenizer.size}."
                )
        elif trained_tokenizer is not None:
            self.tokenizer = Trained(trained_tokenizer, length)
        self.transformer = TokenTransformer(vocab_size, length, dim, depth, heads)

    @property
    def learns_tokens(self) -> bool:
        """Whether its tokenizer is trained on the data."""
        return "tokenizer" not in self.files

    def forward(self, batch: dict[str, Any]) -> Cond:
        """Of batch[field], a list of B texts; what is longer than `length` tokens is cut."""
        return self._cond(self._ids(batch[self.field]))

    def null(self, batch_size: int, size: Size, device: torch.device | str) -> Cond:
        """The empty prompt, read once for all examples."""
        if torch.device(device).type == "meta":  # shapes and costs, where no tokenizer is needed
            cond = self._cond(
                Ids(torch.zeros(1, self.length, dtype=torch.int64), torch.ones(1, self.length, dtype=torch.bool))
            )
        else:
            cond = self._cond(self._ids([""]))
        return cond.repeat(batch_size)

    def _ids(self, texts: Sequence[str]) -> Ids:
        if self.tokenizer is None:
            raise ConfigError(
                "cond: a run trains this tokenizer on the captions, and this command runs the network without a run. Give "
                "cond.conditioner.tokenizer=<folder of a tokenizer>. Or, if it was fair=time that had to measure, use fair=flops."
            )
        return self.tokenizer(texts)

    def _cond(self, ids: Ids) -> Cond:
        there = batch_on_device(ids._asdict(), self.transformer.token_emb.weight.device)
        seen_BL: Tensor | None = there["seen_BL"] if self.mask else None
        return Cond(tokens_BLD=self.transformer(there["id_BL"], seen_BL), seen_BL=seen_BL)
