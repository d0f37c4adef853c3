"""From texts to token numbers: a tokenizer that is trained on the captions of a data set, or one from a folder.

Shape letters: B batch, L tokens.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ldmlab.errors import ConfigError, DataError

os.environ.setdefault(
    "TOKENIZERS_PARALLELISM", "false"
)  # a batch of captions takes a millisecond; loader processes may fork

FILE = "tokenizer.json"
PAD, START, END = "<pad>", "<start>", "<end>"  # numbers 0, 1, 2 of a trained tokenizer
SPACE = "Ġ"  # how a byte-pair tokenizer writes the space before a word
BYTES = 256  # tokens that every trained tokenizer has, so that no text is unknown to it


class Ids(NamedTuple):
    """Token numbers int64 [B, L], padded to L, and which of them are no padding, bool [B, L]."""

    id_BL: Tensor
    seen_BL: Tensor


class Tokenizer(Protocol):
    """size: how many numbers there are."""

    @property
    def size(self) -> int: ...

    def __call__(self, texts: Sequence[str]) -> Ids:
        """A row a text, cut and padded to the same length."""
        ...


def train(texts: Iterable[str], vocab_size: int) -> Any:
    """A byte-pair tokenizer (Sennrich et al. 2016; over bytes as GPT-2's, lower case as CLIP's) of at most `vocab_size` tokens.

    It is a pure function of the texts: merges start from the 256 bytes in a fixed order, and ties go to the smaller pair of numbers.
    Returns a `tokenizers.Tokenizer`.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase(), normalizers.Strip()])
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    made.decoder = decoders.ByteLevel()
    specials = [PAD, START, END]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
        ),
    )
    made.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, 1), (END, 2)]
    )
    return made


def hub_config(length: int) -> dict[str, Any]:
    """tokenizer_config.json, with which `transformers` makes a tokenizer of `train`'s file give the numbers of `Trained`."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": length, "pad_token": PAD, "bos_token": START,
        "eos_token": END, "clean_up_tokenization_spaces": False,
    }  # fmt: skip


class Trained:
    """A tokenizer that `train` made, from its folder. Raises DataError for a damaged file."""

    def __init__(self, folder: Path, length: int):
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_file(str(folder / FILE))
        except Exception as error:  # the library raises Exception itself
            raise DataError(f"{folder / FILE}: no tokenizer ({error}).") from None
        self._tokenizer.enable_truncation(length)
        self._tokenizer.enable_padding(length=length, pad_id=0, pad_token=PAD)

    @property
    def size(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    @property
    def words(self) -> list[str]:
        """Tokens that begin a word, of two letters or more, without those that are the beginning of another; sorted."""
        found = sorted(token[1:] for token in self._tokenizer.get_vocab() if token.startswith(SPACE) and len(token) > 2)
        follows = [*found[1:], ""]
        return [word for word, after in zip(found, follows, strict=True) if not after.startswith(word)]

    def unknown(self, text: str, vocab_size: int) -> list[str]:
        """The words of a text that stood in no caption of the training.

        Pairs are merged until each word is one token or the vocabulary is full. Where it is not full, a word in several pieces was
        never seen; where it is, nobody can tell, and there is no answer.
        """
        if self.size >= vocab_size:
            return []
        known = self._tokenizer.get_vocab()
        strange = [word for word in self._split(text) if word not in known and any(sign.isalnum() for sign in word)]
        return [self._tokenizer.decoder.decode([word]).strip() for word in strange]

    def signs(self, text: str) -> list[str]:
        """What stands in a text and is no word: commas, apostrophes. Each is a token, learnt or not."""
        found = [self._tokenizer.decoder.decode([word]).strip() for word in self._split(text)]
        return sorted({word for word in found if word and not any(sign.isalnum() for sign in word)})

    def _split(self, text: str) -> list[str]:
        normalised = self._tokenizer.normalizer.normalize_str(text)
        return [word for word, _ in self._tokenizer.pre_tokenizer.pre_tokenize_str(normalised)]

    def cuts(self, text: str) -> bool:
        """Whether a text has more tokens than are read."""
        return bool(self._tokenizer.encode(text).overflowing)

    def __call__(self, texts: Sequence[str]) -> Ids:
        rows = self._tokenizer.encode_batch(list(texts))
        seen_BL = torch.tensor([row.attention_mask for row in rows]).bool()
        return Ids(torch.tensor([row.ids for row in rows]), seen_BL)


class FromFolder:
    """A tokenizer of `transformers` (BERT's, CLIP's, T5's) from a local folder.

    Raises ConfigError, naming `option`, for a folder that holds none.
    """

    def __init__(self, folder: Path, length: int, option: str):
        from transformers import AutoTokenizer

        self.length = length
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        except Exception as error:  # of every kind: OSError, ValueError, ImportError …
            why = " ".join(str(error).split())[:160]
            raise ConfigError(
                f"{option}={folder} holds no tokenizer that transformers can read ({why}). It must hold tokenizer.json and "
                "tokenizer_config.json, or BERT's vocab.txt, or CLIP's vocab.json and merges.txt."
            ) from None
        if self._tokenizer.pad_token is None:
            raise ConfigError(
                f"{option}={folder}: this tokenizer has no padding token. Give one that has, as BERT's, CLIP's and T5's."
            )

    @property
    def size(self) -> int:
        return len(self._tokenizer)

    @property
    def class_name(self) -> str:
        """The class of `transformers` that reads the folder."""
        name = type(self._tokenizer).__name__
        return "PreTrainedTokenizerFast" if name == "TokenizersBackend" else name  # its name before and since version 5

    def __call__(self, texts: Sequence[str]) -> Ids:
        found = self._tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
        )
        return Ids(found["input_ids"], found["attention_mask"].bool())
