"""What a budget made of each denoiser, what is equal between cells then and what is not."""

from ldmlab.reports import document as doc
from ldmlab.reports import numbers
from ldmlab.reports.records import Run

HEADS = [
    "made equal", "network", "latent", "parameters", "GFLOP an image", "parameters over reference", "FLOPs", "seconds",
    "images/s measured", "training TFLOP", "with first stage",
]  # fmt: skip
NOTE = (
    "Over the reference, {reference}: parameters, operations and seconds of training an image. GFLOP an image: three forward passes, "
    "multiply and add counted as two. With first stage: its training (encoder and decoder, not the networks of its loss) and encoding "
    "the images for the denoiser; a first stage that several cells share is counted in each."
)


def section(runs: list[Run]) -> doc.Section | None:
    """A row a denoiser that a budget sized; None where none was."""
    sized: dict[str, Run] = {}
    for run in runs:
        denoiser = run.stage("denoiser")
        if run.budget and denoiser is not None:
            sized.setdefault(denoiser.id, run)
    if not sized:
        return None
    rows, references = [], []
    for run in sized.values():
        network, base, over = (run.budget.get(key) or {} for key in ("network", "reference", "over_reference"))
        training, speed = run.budget["training"], run.budget["throughput"] or {}
        ratios = [over.get(key) for key in ("parameters", "flops_per_image", "seconds_per_image")]
        c, height, width = network["latent"]
        rows.append([
            run.label, run.budget["fair"] or "own target", network["sizes"], f"{height}x{width}x{c}",
            numbers.millions(network["parameters"]), f"{network['flops_per_image'] / 1e9:.3g}",
            *("–" if ratio is None else f"{ratio:.3g}" for ratio in ratios), numbers.plain(speed.get("images_per_second")),
            f"{training['denoiser'] / 1e12:.3g}", f"{sum(training.values()) / 1e12:.3g}",
        ])  # fmt: skip
        if base:
            references.append(
                f"f={base['f']} c={base['c']}, {base['sizes']}, {numbers.millions(base['parameters'])} parameters, "
                f"{base['flops_per_image'] / 1e9:.3g} GFLOP"
            )
    note = NOTE.format(reference="; ".join(dict.fromkeys(references)) or "where fair=… names one")
    table = doc.Table(["run", *HEADS], doc.entries(rows), left=4)
    return doc.Section("Equal and unequal", [table, doc.Paragraph(note, "small")], "equal")
