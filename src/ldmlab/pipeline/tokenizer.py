"""The tokenizer of the data's captions, for a conditioning that reads texts and has none from elsewhere."""

import difflib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ldmlab.conditioning.text import Text
from ldmlab.conditioning.tokenizer import FILE, Trained, train
from ldmlab.data.base import ImageDataset
from ldmlab.errors import ConfigError
from ldmlab.pipeline.context import Context
from ldmlab.pipeline.data import DataStage
from ldmlab.pipeline.stage import Row, Stage
from ldmlab.store.files import atomic, write_json
from ldmlab.terminal import number

if TYPE_CHECKING:
    from ldmlab.pipeline.plan import Plan

READ = 1024  # images whose captions are read at once
TOKENS = "tokens.json"
MOST = 200_000  # training images whose captions are read; a tokenizer of so many is not much different with more


class TokenizerStage(Stage):
    """tokenizer.json, as the library `tokenizers` has it; tokens.json with how long the captions are and which signs stand in them."""

    name: ClassVar[str] = "tokenizer"

    @classmethod
    def of(cls, plan: "Plan") -> list[Stage]:
        return [plan.stage(cls)] if _learning(plan) else []

    @property
    def _text(self) -> Text:
        return _learning(self.plan)[0]

    @property
    def label(self) -> str:
        return self.plan.resolved.choices["data"]

    def own(self) -> dict[str, Any]:
        return {"field": self._text.field, "vocab_size": self._text.vocab_size, "captions": MOST}

    def upstream(self) -> dict[str, Stage | str]:
        return {"data": self.plan.stage(DataStage)}

    def check(self) -> None:
        """Conditioners of one run share a tokenizer."""
        if len({(part.field, part.vocab_size) for part in _learning(self.plan)}) > 1:
            raise ConfigError(
                "cond has several text conditioners whose tokenizers would be trained differently. Give them the same field and "
                "vocab_size, or a tokenizer folder."
            )

    def row(self) -> Row:
        images = min(len(self.plan.resolved.data), MOST)
        return Row(f"at most {number(self._text.vocab_size)} tokens, from {number(images)} captions")

    def work(self, ctx: Context, folder: Path) -> None:
        if not ctx.main:
            return
        made = train(_texts(ctx.data, self._text.field), self._text.vocab_size)
        with atomic(folder / FILE) as beside:
            made.save(str(beside))
        lengths = [len(row.ids) for part in _parts(ctx.data, self._text.field) for row in made.encode_batch(part)]
        trained = Trained(folder, self._text.length)
        signs = sorted({sign for text in _texts(ctx.data, self._text.field) for sign in trained.signs(text)})
        cut = sum(length > self._text.length for length in lengths) / len(lengths)
        write_json(
            folder / TOKENS,
            {"tokens": made.get_vocab_size(), "captions": len(lengths), "longest": max(lengths), "signs": signs},
        )
        ctx.say(f" tokenizer: {made.get_vocab_size()} tokens; the longest caption has {max(lengths)}")
        if cut:
            ctx.say(
                f" note: {cut:.1%} of the captions are longer than cond.conditioner.length={self._text.length} tokens, and are cut"
            )


def check_words(plan: "Plan", texts: Sequence[str]) -> None:
    """ConfigError for a text that is too long, or has a word that stands in no caption; a note about such a sign.

    Silent where the tokenizer cannot tell, or is not trained yet.
    """
    for stage in TokenizerStage.of(plan) if texts else ():
        trained = plan.store.done(stage.address) is not None
        for part in _learning(plan) if trained else ():
            tokenizer = Trained(plan.store.folder(stage.address), part.length)
            for text in texts:
                if unknown := tokenizer.unknown(text, part.vocab_size):
                    close = difflib.get_close_matches(unknown[0].lower(), tokenizer.words, 3, 0.5)
                    hint = f" Near it are {', '.join(close)}." if close else ""
                    raise ConfigError(
                        f"prompt={text!r}: '{unknown[0]}' stands in no caption that this denoiser learnt from.{hint} "
                        f"Use words of the captions: {', '.join(tokenizer.words[:8])} …"
                    )
                if new := _new_signs(tokenizer, text, plan.store.folder(stage.address)):
                    plan.notes.append(
                        f"note: prompt={text!r}: {' '.join(new)} stands in no caption that this denoiser learnt from. It is read, "
                        "as a token that has learnt nothing, and changes the picture; leave it out to see how much."
                    )
                if tokenizer.cuts(text):
                    raise ConfigError(
                        f"prompt={text!r} has more tokens than this denoiser reads, cond.conditioner.length={part.length}. Shorten it."
                    )


def _new_signs(tokenizer: Trained, text: str, folder: Path) -> list[str]:
    """The signs of a text that stood in no caption; none for a tokenizer from before captions' signs were kept."""
    met = json.loads((folder / TOKENS).read_text(encoding="utf-8")).get("signs")
    return [] if met is None else [sign for sign in tokenizer.signs(text) if sign not in met]


def trained_tokenizer(plan: "Plan", ctx: Context) -> Path | None:
    """The folder of the run's own tokenizer, trained first where it is missing; None for a run without one."""
    found = TokenizerStage.of(plan)
    return found[0].make(ctx) if found else None


def tokenizer_of(plan: "Plan") -> dict[str, Stage | str]:
    """Role → the tokenizer that a denoiser stands on."""
    return {"tokenizer": plan.stage(TokenizerStage)} if _learning(plan) else {}


def _learning(plan: "Plan") -> list[Text]:
    """The conditioners that read texts with a tokenizer of the data's own."""
    return [part for part in plan.resolved.denoiser.modules() if isinstance(part, Text) and part.learns_tokens]


def _parts(data: ImageDataset, field: str) -> Iterator[list[str]]:
    count = min(len(data), MOST)
    for begin in range(0, count, READ):
        yield [sample[field] for sample in data.__getitems__(list(range(begin, min(begin + READ, count))))]


def _texts(data: ImageDataset, field: str) -> Iterator[str]:
    for part in _parts(data, field):
        yield from part
