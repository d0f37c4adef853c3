"""`compare=tiles`: encode and decode of large images, whole and in overlapping tiles: error, time, memory."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from ldmlab import build
from ldmlab.autoencoders.autoencoder import Autoencoder
from ldmlab.bench import record
from ldmlab.data.base import to_batch
from ldmlab.data.batches import to_float, to_uint8
from ldmlab.errors import ConfigError
from ldmlab.metrics.reconstruction import psnr
from ldmlab.pipeline import weights_first_stage
from ldmlab.pipeline.live_memory import no_numbers, peak_bytes, tensors_of
from ldmlab.pipeline.timing import clock_for

SHARES = (1, 2, 4)  # the tile is the image's side over these

COLUMNS = [
    record.Column("tile", "tile"),
    record.Column("encode_seconds", "encode: s/img", record.digits),
    record.Column("decode_seconds", "decode: s/img", record.digits),
    record.Column("encode_peak_bytes", "encode: peak memory", record.mebibytes),
    record.Column("decode_peak_bytes", "decode: peak memory", record.mebibytes),
    record.Column("psnr", "PSNR to the image, dB", record.digits),
    record.Column("psnr_to_whole", "PSNR to the untiled, dB", record.digits),
    record.Column("worst", "largest difference, of 255", record.digits),
]


def compare_tiles(cfg: DictConfig, words: list[str], device: torch.device) -> record.Report:
    """Rows: the whole image, then tiles of a half and a quarter of its side (and `ae.tile`), on val images of `data`.

    The error is that of reconstructions, rounded to 8 bit. Memory is counted without numbers, so of any size.
    """
    if cfg.ae.weights is None:
        raise ConfigError(
            "compare=tiles needs a trained first stage, for an untrained one has no picture to spoil. Give ae.weights=<file>, "
            "such as store/autoencoder/<name>-<id>/autoencoder.safetensors."
        )
    val = build.dataset(cfg, "val", Path(cfg.store) / "data" / "cache")
    count = min(cfg.bench.batch_size or 2, len(val))
    image_BHWC = to_batch([val[i] for i in range(count)])["image"]
    image_BCHW = to_float(image_BHWC.to(device))
    ae = build.autoencoder(cfg).to(device).eval().requires_grad_(False)
    source = weights_first_stage.install(cfg, ae)
    side = image_BCHW.shape[-1]
    sizes = dict.fromkeys([side // share for share in SHARES] + [cfg.ae.tile or side])
    report = record.Report("tiles", COLUMNS)
    whole: Tensor | None = None
    for size in sizes:
        if size % (4 * ae.f):
            raise ConfigError(
                f"tiles of {size} pixels are no multiple of 4 f = {4 * ae.f}: choose data.resolution a multiple of {16 * ae.f}."
            )
        record.announce("the whole image" if size == side else f"tiles of {size}")
        ae.tile = None if size == side else size
        row, recon = _row(ae, image_BCHW, image_BHWC, device)
        whole = recon if whole is None else whole
        difference = (recon.int() - whole.int()).abs()
        row |= {
            "tile": f"{size}" if ae.tile else "none",
            "psnr_to_whole": None if ae.tile is None else _psnr(recon, whole),
            "worst": None if ae.tile is None else float(difference.max()),
        }
        report.rows.append(row)
    report.rows = _with_memory(report.rows, cfg, side, sizes)
    report.notes = [
        f"{source['file']}; {count} val images of {side}x{side}, tiles overlap by a quarter; {clock_for(device).name}, "
        f"{torch.get_num_threads()} thread(s); one pass each; memory of one image, weights included"
    ]
    return report


def _row(
    ae: Autoencoder, image_BCHW: Tensor, image_BHWC: Tensor, device: torch.device
) -> tuple[dict[str, Any], Tensor]:
    clock = clock_for(device)
    with torch.no_grad():
        start = clock.now()
        z_BCHW = torch.cat([ae.encode(one) for one in image_BCHW.split(1)])
        middle = clock.now()
        recon_BHWC = to_uint8(torch.cat([ae.decode(one) for one in z_BCHW.split(1)])).cpu()
        end = clock.now()
    n = len(image_BCHW)
    times = {"encode_seconds": (middle - start) / n, "decode_seconds": (end - middle) / n}
    return {**times, "psnr": _psnr(recon_BHWC, image_BHWC)}, recon_BHWC


def _psnr(a_BHWC: Tensor, b_BHWC: Tensor) -> float:
    return float(psnr(a_BHWC.permute(0, 3, 1, 2), b_BHWC.permute(0, 3, 1, 2)).mean())


def _with_memory(rows: list[dict[str, Any]], cfg: DictConfig, side: int, sizes: Any) -> list[dict[str, Any]]:
    out = []
    for row, size in zip(rows, sizes, strict=True):
        ae = build.autoencoder(cfg).eval().requires_grad_(False)
        ae.tile = None if size == side else size
        with no_numbers(ae), torch.no_grad():
            image = torch.empty(1, 3, side, side)
            z = torch.empty(1, *ae.latent_shape(side))
            peaks = {}
            for name, call, given in (("encode", ae.moments, image), ("decode", ae.decode, z)):
                peaks[f"{name}_peak_bytes"] = peak_bytes(
                    partial(call, given), tensors_of(ae, given), torch.device("cpu")
                )
        out.append({**row, **peaks})
    return out
