"""`compare=codebook`: the block look-up of `regularisers/vq.py` beside the distance matrix of the official code.

Shape letters: M vectors, C channels, K codes.
"""

from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from ldmlab import build
from ldmlab.autoencoders.kmeans import nearest
from ldmlab.bench import record
from ldmlab.errors import ConfigError
from ldmlab.pipeline.live_memory import peak_bytes
from ldmlab.pipeline.timing import clock_for, interleave, speed_ratio

BATCHES = (
    1,
    2,
    4,
    8,
)  # images; the whole distance matrix of 8 at f=8, 256 px and 16384 codes is 512 MiB, held three times

COLUMNS = [
    record.Column("batch", "images"),
    record.Column("vectors", "vectors"),
    record.Column("codes", "codes"),
    record.Column("ours_seconds", "blocks, best", record.milliseconds),
    record.Column("peer_seconds", "whole matrix, best", record.milliseconds),
    record.Column("speed", "blocks are faster by", record.with_quartiles),
    record.Column("ours_bytes", "blocks' peak", record.mebibytes),
    record.Column("peer_bytes", "matrix's peak", record.mebibytes),
    record.Column("differing", "indices that differ"),
]


def naive(h_MC: Tensor, code_KC: Tensor) -> Tensor:
    """taming/modules/vqvae/quantize.py, VectorQuantizer2: the whole matrix of squared distances, then its argmin."""
    distance_MK = (
        torch.sum(h_MC**2, dim=1, keepdim=True)
        + torch.sum(code_KC**2, dim=1)
        - 2 * torch.einsum("bd,dn->bn", h_MC, code_KC.t())
    )
    return torch.argmin(distance_MK, dim=1)


def compare_codebook(cfg: DictConfig, words: list[str], device: torch.device) -> record.Report:
    """Rows: batch sizes. Vectors and codes are standard normal, as a trained codebook's are nearly."""
    if "codes" not in cfg.ae.regulariser:
        raise ConfigError("compare=codebook needs a first stage with a codebook: add ae=vq_f8, or another vq.")
    with build.shapes_only():
        c, height, width = build.autoencoder(cfg).latent_shape(cfg.data.resolution)
    codes, clock = int(cfg.ae.regulariser.codes), clock_for(device)
    generator = torch.Generator().manual_seed(0)
    code_KC = torch.randn(codes, c, generator=generator).to(device)
    report = record.Report("codebook", COLUMNS)
    for batch in BATCHES if cfg.bench.batch_size is None else (cfg.bench.batch_size,):
        h_MC = torch.randn(batch * height * width, c, generator=generator).to(device)
        works = {"ours": partial(nearest, h_MC, code_KC), "peer": partial(naive, h_MC, code_KC)}
        seconds = interleave(works, cfg.bench.rounds, clock)
        row: dict[str, Any] = {
            "batch": batch, "vectors": len(h_MC), "codes": codes, "c": c, "clock": clock.name, "rounds": cfg.bench.rounds,
            "ours_seconds": min(seconds["ours"]), "peer_seconds": min(seconds["peer"]),
            "speed": speed_ratio(seconds["ours"], seconds["peer"]), "differing": differing(h_MC, code_KC),
        }  # fmt: skip
        held = [h_MC, code_KC]
        inputs = sum(x.nbytes for x in held)
        row |= {f"{name}_bytes": peak_bytes(work, held, device) - inputs for name, work in works.items()}
        report.rows.append(row)
    report.notes = [
        f"{clock.name}, {torch.get_num_threads()} thread(s), {cfg.bench.rounds} interleaved rounds: median of their ratios, "
        "quartiles in brackets; aim at least 2.4. Peaks without vectors and codes",
        "indices that differ: where the two choose codes whose distances differ by more than float32 can tell "
        "(1e-6 of the squared lengths involved); ties within that are not counted",
    ]
    return report


def differing(h_MC: Tensor, code_KC: Tensor) -> int:
    """Vectors for which the two find codes at distances that differ beyond float32's rounding."""
    chosen = [nearest(h_MC, code_KC), naive(h_MC, code_KC)]
    h = h_MC.double()
    ours, theirs = ((h - code_KC.double()[index]).square().sum(1) for index in chosen)
    scale = h.square().sum(1) + code_KC.double()[chosen[1]].square().sum(1)
    return int(((ours - theirs).abs() > 1e-6 * scale).sum())
