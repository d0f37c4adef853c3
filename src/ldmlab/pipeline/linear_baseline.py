"""The linear baseline of a first stage: principal components with the same f and c, fitted to the same training images.

Letters: B batch, C channels, H W space.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from ldmlab.autoencoders.linear_path import LinearPath
from ldmlab.data.batches import to_float
from ldmlab.data.parcel import on_device
from ldmlab.errors import TrainingError
from ldmlab.metrics.reconstruction import highest_psnr, psnr, rounded
from ldmlab.metrics.reconstruction_pass import Read, batched

FIT_IMAGES = 10_000  # training images that the components are taken from, at most; more move the PSNR by hundredths


class LinearComparison(NamedTuple):
    """PSNR of the linear baseline and the gain over it, in dB over the reconstructed val images; both are in `facts.json`.

    None where c numbers hold a whole patch, so that the baseline loses nothing.
    """

    linear_psnr: float | None
    gain_over_linear: float | None


@torch.no_grad()
def linear_psnr(
    f: int,
    c: int,
    training: Callable[[int], Iterable[Tensor]],
    read: Read,
    n: int,
    batch_size: int,
    device: torch.device,
    bits: int = 8,
) -> float | None:
    """Mean PSNR in dB of the linear first stage over the n images that `read(rows)` gives (BHWC of so many bits), rounded to them.

    training: gives batches [B, 3, H, W] in [-1, 1] of at most that many images. None when c numbers hold a whole patch, and when there
    are fewer training patches than components.
    """
    channels = int(read([0]).shape[3])
    if c >= channels * f * f:
        return None
    linear = LinearPath(f, c, image_channels=channels).to(device)
    try:
        linear.fit(training(FIT_IMAGES))
    except TrainingError:  # fewer patches than components: nothing to compare with
        return None
    parts = []
    for rows in batched(n, batch_size):
        image_BCHW = to_float(on_device(read(rows), device))
        recon_BCHW = torch.nn.functional.pixel_shuffle(linear.decode(linear.encode(image_BCHW)), f)
        psnr_B = psnr(rounded(image_BCHW, bits), rounded(recon_BCHW, bits), bits=bits)
        parts.append(psnr_B.clamp(max=highest_psnr(*image_BCHW.shape[1:], bits=bits)))
    return float(torch.cat(parts).mean())


def compared(found_psnr: float, linear: float | None) -> LinearComparison:
    """A first stage of PSNR `found_psnr` beside its baseline of PSNR `linear`."""
    return LinearComparison(linear, None if linear is None else found_psnr - linear)


def warnings(comparison: LinearComparison, trained: bool, f: int, c: int, quantises: bool = False) -> list[str]:
    """The warning about a trained first stage whose PSNR is below its linear baseline.

    quantises: its latent is rounded to codes and the baseline's is not, so that few bits may lose to it.
    """
    psnr, gain = comparison
    if not trained or gain is None or gain >= 0:
        return []
    below = f"below linear: it ends {-gain:.2f} dB below the {psnr:.2f} dB of a linear projection with the same f and c"
    if quantises:
        return [
            f"{below}, whose numbers are not quantised. At equal bits the bar is the codebook at their k-means: "
            f"ae=pca_f{f} ae.network.c={c} ae/regulariser=vq_quick."
        ]
    return [
        f"{below}, which takes seconds (ae=pca_f{f} ae.network.c={c}): this stage is trained too little. Set more ae.fit.images, "
        f"or choose ae=kl_f{f}_quick or vq_f{f}_quick, which start from the linear projection."
    ]
