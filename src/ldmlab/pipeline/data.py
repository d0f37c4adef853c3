"""The data of a run: what it learns from, written down. The images stay where they are."""

from pathlib import Path
from typing import Any, ClassVar

from ldmlab.pipeline.context import Context
from ldmlab.pipeline.stage import Row, Stage
from ldmlab.store.files import write_json
from ldmlab.training.tracking import number


class DataStage(Stage):
    """manifest.json: counts, fields and their vocabularies, class names, fingerprints, which image is in which split."""

    name: ClassVar[str] = "data"
    version: ClassVar[int] = 2
    due: ClassVar[str | None] = "autoencoder"

    @property
    def label(self) -> str:
        return self.plan.resolved.choices["data"]

    def own(self) -> dict[str, Any]:
        data, val = self.plan.resolved.data, self.plan.resolved.val
        return {"train": data.fingerprint(), "val": val.fingerprint(), "flip": data.flip}

    def row(self) -> Row:
        data, val = self.plan.resolved.data, self.plan.resolved.val
        fields = f" · {', '.join(data.fields)}" if data.fields else ""
        size = data.resolution
        return Row(f"{number(len(data))} train · {number(len(val))} val · {size}x{size}{fields}")

    def work(self, ctx: Context, folder: Path) -> None:
        if ctx.main:
            record = {
                "train": len(ctx.data), "val": len(ctx.val), "resolution": ctx.data.resolution, "flip": ctx.data.flip,
                "fields": list(ctx.data.fields), "class_names": list(ctx.data.class_names),
                "vocabulary": {field.name: field.values for field in ctx.data.declared},
                "fingerprint": {"train": ctx.data.fingerprint(), "val": ctx.val.fingerprint()},
                "splits": ctx.data.split_record(),
            }  # fmt: skip
            write_json(folder / "manifest.json", record)
