"""One pass of a first stage over val images: what it loses, what it costs, and what its latent looks like.

Letters: N images, B batch, C channels, H W space.
"""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ldmlab.autoencoders.autoencoder import Autoencoder
from ldmlab.autoencoders.pca import PCANetwork
from ldmlab.autoencoders.scale import LatentStatistics
from ldmlab.data.batches import eight_bits, to_float, to_uint8
from ldmlab.data.parcel import on_device
from ldmlab.metrics import latents
from ldmlab.metrics.rate import Rate, plain
from ldmlab.metrics.reconstruction import ReconstructionError, highest_psnr, psnr
from ldmlab.randomness import ImageNoise, seed_of
from ldmlab.store.files import atomic

LATENT_IMAGES = 256  # images behind histograms, correlation, components and spectra, at most
NOISED_IMAGES = 64  # images that are decoded from noised latents, at most
SHOWN = 8  # images that are kept with their reconstructions, to be looked at side by side with other first stages'

Read = Callable[[list[int]], Tensor]


class Stopwatch:
    """Images a second of one call, from the batches of a pass; the first batch is warm-up when there is another."""

    def __init__(self, device: torch.device):
        self.device, self.seconds, self.images = device, list[float](), list[int]()

    def run(self, call: Callable[[], Tensor], images: int) -> Tensor:
        """`call()`, timed until the device has finished it."""
        self._wait()
        began = time.perf_counter()
        result = call()
        self._wait()
        self.seconds.append(time.perf_counter() - began)
        self.images.append(images)
        return result

    def rate(self) -> float:
        first = 1 if len(self.seconds) > 1 else 0
        return sum(self.images[first:]) / sum(self.seconds[first:])

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def parameters(ae: Autoencoder) -> dict[str, int]:
    """Parameters of encoder, decoder and regulariser (a codebook); what is of none of the three is under "other"."""
    count = {"encoder": 0, "decoder": 0, "regulariser": 0, "other": 0}
    for name, tensor in ae.named_parameters():
        part = {"encoder": "encoder", "quant_conv": "encoder", "decoder": "decoder", "post_quant_conv": "decoder"}
        key = "regulariser" if name.startswith("regulariser.") else part.get(name.split(".")[1], "other")
        count[key] += tensor.numel()
    return count


class Pass:
    """Everything that is measured while `n` images go through a first stage; `read(rows)` gives uint8 BHWC (or uint16)."""

    def __init__(
        self, ae: Autoencoder, read: Read, n: int, batch_size: int, device: torch.device, perceptual: nn.Module | None
    ):
        self.ae, self.read, self.n, self.batch_size, self.device = ae, read, n, batch_size, device
        self.gauge = ReconstructionError(perceptual, bits=16 if read([0]).dtype == torch.uint16 else 8)
        self.statistics = LatentStatistics(ae.c)
        self.encoding, self.decoding = Stopwatch(device), Stopwatch(device)
        self.codes: int | None = None
        self._go()

    @torch.no_grad()
    def _go(self) -> None:
        for rows in batched(self.n, self.batch_size):
            image_BCHW = self._images(rows)
            moments_BCHW = self.encoding.run(lambda x=image_BCHW: self.ae.moments(x), len(rows))  # type: ignore[misc]
            z_BCHW = self.ae.sample(moments_BCHW)
            recon_BCHW = self.decoding.run(lambda z=z_BCHW: self.ae.decode(z), len(rows))  # type: ignore[misc]
            self.gauge.update(image_BCHW, recon_BCHW)
            posterior = self.ae.posterior(moments_BCHW)
            self.statistics.update(posterior)
            if rows[0] == 0:
                _, h, w = z_BCHW.shape[1:]
                self.shape, self.resolution, self.channels = (self.ae.c, h, w), image_BCHW.shape[2], image_BCHW.shape[1]
                self.rate = Rate(h * w, z_BCHW[0].numel(), image_BCHW[0, 0].numel())
            if posterior.variance_BCHW is not None:
                self.rate.add_posterior(posterior.mean_BCHW, posterior.variance_BCHW)
            for moments_CHW in moments_BCHW:
                counts_K = self.ae.regulariser.counts(moments_CHW[None])
                if counts_K is not None:
                    self.rate.add_codes(counts_K)
        self.codes = self.rate.K

    def _images(self, rows: list[int]) -> Tensor:
        return to_float(on_device(self.read(rows), self.device))

    def scores(self, bootstrap: int, seed: int) -> dict[str, Any]:
        """PSNR, SSIM, perceptual distance and bits with intervals; mean and std of the raw latent. For scores.json."""
        found = plain(dict(self.gauge.compute(bootstrap, seed)) | self.rate.compute(bootstrap, seed))
        return found | {"latent_mean": self.statistics.mean, "latent_std": self.statistics.std}

    def facts(self) -> dict[str, Any]:
        """What the first stage is, and how fast it ran here. Images a second are of this machine and no score."""
        c, h, w = self.shape
        return {
            "f": self.ae.f, "c": c, "regulariser": type(self.ae.regulariser).__name__,
            "linear": isinstance(self.ae.network, PCANetwork), "codes": self.codes,
            "resolution": self.resolution, "latent_shape": [c, h, w], "parameters": parameters(self.ae),
            "compression_elements": self.channels * self.resolution**2 / (c * h * w),
            "pixel_bits": self.channels * self.gauge.bits, "latent_images": len(self._sampled()),
            "latent_scale": self.ae.scale.flatten().tolist(), "latent_shift": self.ae.shift.flatten().tolist(),
            "speed": {
                "encode": self.encoding.rate(), "decode": self.decoding.rate(), "unit": "images/s",
                "batch": min(self.batch_size, self.n), "batches": len(self.encoding.seconds),
                "warm_up": len(self.encoding.seconds) > 1, "device": self.device.type,
                "threads": torch.get_num_threads(), "precision": "fp32", "load": round(os.getloadavg()[0], 2),
            },
        }  # fmt: skip

    def per_image(self) -> dict[str, np.ndarray]:
        """One number per image, float64 [N], by name."""
        return self.gauge.values()

    @torch.no_grad()
    def shown(self) -> dict[str, np.ndarray]:
        """The first images and their reconstructions, uint8 NHWC."""
        rows = list(range(min(SHOWN, self.n)))
        recon_BCHW = self.ae.decode(self.ae.encode(self._images(rows)))
        return {"original": eight_bits(self.read(rows)).numpy(), "reconstruction": to_uint8(recon_BCHW).cpu().numpy()}

    @torch.no_grad()
    def latent(self) -> dict[str, np.ndarray]:
        """What the page of a latent is drawn from: see `metrics.latents`. Latents are posterior means, standardised."""
        rows = self._sampled()
        image_NCHW, z_NCHW = [], []
        for part in batched(len(rows), self.batch_size):
            image_BCHW = self._images([rows[i] for i in part])
            image_NCHW.append(image_BCHW.mean(dim=1, keepdim=True).cpu().numpy())
            z_NCHW.append(self.ae.encode(image_BCHW).float().cpu().numpy())
        z, grey = np.concatenate(z_NCHW), np.concatenate(image_NCHW)
        histogram, found = latents.histograms(z), latents.pca(z)
        spectrum, of_images = latents.spectrum(z), latents.spectrum(grey)
        first = self.ae.encode(self._images(list(range(min(SHOWN, self.n))))).float().cpu().numpy()
        return {
            "edges": histogram.edges_J, "density": histogram.density_CJ.astype(np.float32),
            "mean": z.mean(axis=(0, 2, 3), dtype=np.float64), "std": z.std(axis=(0, 2, 3), dtype=np.float64),
            "correlation": latents.correlation(z),
            "cycles": spectrum.cycles_F, "power": spectrum.power_CF,
            "image_cycles": of_images.cycles_F, "image_power": of_images.power_CF[0],
            "pca_mean": found.mean_C, "pca_basis": found.basis_CP, "pca_share": found.share_P,
            "pca_maps": latents.pca_rgb(first, found, latents.pca_spread(z, found)),
            **self._noised(float(z.std())),
        }  # fmt: skip

    def _noised(self, std: float) -> dict[str, np.ndarray]:
        """PSNR of decoding noised latents and one posterior sample; image i's noise is a function of i alone."""
        parts: list[latents.Noised] = []
        sampled: list[np.ndarray] = []
        for rows in batched(min(self.n, NOISED_IMAGES), self.batch_size):
            image_BCHW = self._images(rows)
            moments_BCHW = self.ae.moments(image_BCHW)
            z_BCHW = self.ae.sample(moments_BCHW)
            noise = ImageNoise([seed_of("noised latent", i) for i in rows], z_BCHW.shape[1:], self.device)
            image8_BCHW = to_uint8(image_BCHW).permute(0, 3, 1, 2)
            parts.append(latents.noised(self.ae.decode, z_BCHW, image8_BCHW, noise(), std))
            if self.ae.stochastic:
                recon_BHWC = to_uint8(self.ae.decode(self.ae.sample(moments_BCHW, noise())))
                psnr_B = psnr(image8_BCHW, recon_BHWC.permute(0, 3, 1, 2))
                sampled.append(psnr_B.clamp(max=highest_psnr(*image8_BCHW.shape[1:])).cpu().numpy())
        return {
            "noise_levels": np.array(latents.NOISE_LEVELS), "noise_std": np.array(std),
            "noised_additive": np.concatenate([part.additive_SN for part in parts], axis=1),
            "noised_preserving": np.concatenate([part.preserving_SN for part in parts], axis=1),
            **({"psnr_of_samples": np.concatenate(sampled)} if sampled else {}),
        }  # fmt: skip

    def _sampled(self) -> list[int]:
        """Rows spread over all of them, so that sorted classes are all seen."""
        return np.linspace(0, self.n - 1, min(LATENT_IMAGES, self.n)).round().astype(int).tolist()


def batched(n: int, size: int) -> Iterator[list[int]]:
    """0…n-1 in consecutive pieces."""
    for begin in range(0, n, size):
        yield list(range(begin, min(begin + size, n)))


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """An npz without pickled objects."""
    with atomic(path) as beside, beside.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
