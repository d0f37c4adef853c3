"""Rate and distortion along the diffusion chain: the paper's Fig. 2 (Ho et al. 2006.11239, §4.3 and Fig. 5).

A receiver learns z_T, then ever less noisy z_t. The terms of the variational bound say what that costs; decoding the predicted
z_0 says what is known by then (docs/paper.md#rate-and-distortion). For z_t = alpha z_0 + sigma eps, SNR = alpha² / sigma² and
a step from time t to s < t (2107.00630, eq. 13 and 14, as Ho's eq. 12 with the posterior's own variance)

    KL(q(z_T | z_0) ‖ N(0, I)) = ½ Σ (alpha_T² z_0² + sigma_T² - 1 - ln sigma_T²)
    KL(q(z_s | z_t, z_0) ‖ p(z_s | z_t)) = ½ (SNR(s) - SNR(t)) ‖z_0 - z_0(z_t)‖²

in nats over the whole latent; here in bits per pixel and colour of the *image*, so that it compares across f. The chain ends
at the least noisy time. What an exact z_0 would cost from there on is left out: a latent has no 8 bits to be exact in.
Fewer steps than the schedule has make a coarser chain with a bound of its own, which is larger.

Shape letters: B batch, N images, C channels, H W space, S times.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ldmlab.data.batches import to_float, to_uint8
from ldmlab.diffusion.denoiser import Denoise
from ldmlab.diffusion.schedules import Schedule
from ldmlab.metrics.intervals import Score, centred, check_bootstrap, interval_text, resamples
from ldmlab.metrics.metric import Computed, Inputs, Metric
from ldmlab.ranges import Range
from ldmlab.samplers.base import at_time

LEAST_ALPHA = 1e-4  # below it a time counts as one without signal
FILE = "chain.json"  # of the stage `chain`
WORDS = {
    "bits": "bits per pixel and colour until the least noisy time: the terms of the variational bound",
    "rmse": "root mean squared error of the decoded prediction at the least noisy time, 8 bit",
    "perceptual": "perceptual distance of the decoded prediction at the least noisy time, 8 bit",
}
UNITS = {"bits": "bit/dim", "rmse": "levels", "perceptual": ""}
LABELS = {"bits": "chain's rate", "rmse": "chain's RMSE", "perceptual": "chain's perceptual distance"}


class Chain(NamedTuple):
    """What each image costs until z_t is known, and what its prediction from z_t loses, float64; noisiest time first."""

    bits_SN: np.ndarray  # per pixel and colour: the sum of all terms before
    mse_SN: np.ndarray  # in levels² of 255, mean over pixels and colours
    perceptual_SN: np.ndarray | None


def chain_times(schedule: Schedule, steps: int) -> list[int]:
    """Whole times from T-1 to 0, at most `steps` of them, as evenly spaced in log SNR as the schedule allows; all for steps = T.

    Steps of equal ratio of SNR: a step's bound is loose by how much better z_s is known than z_t.
    """
    alpha_T, sigma_T = schedule.levels()
    falls_T = 2 * (alpha_T.clamp_min(LEAST_ALPHA) / sigma_T).log()
    if steps >= schedule.T:
        return list(range(schedule.T))[::-1]
    wanted_S = torch.linspace(float(falls_T[-1]), float(falls_T[0]), steps, dtype=torch.float64)
    nearest_S = (falls_T[None] - wanted_S[:, None]).abs().argmin(dim=1)
    return sorted({schedule.T - 1, 0, *nearest_S.tolist()}, reverse=True)


@torch.no_grad()
def walk(
    denoise: Denoise,
    schedule: Schedule,
    cond: Any,
    z0_BCHW: Tensor,
    eps_BCHW: Tensor,
    image8_BHWC: Tensor,
    decode: Callable[[Tensor], Tensor],
    times: Sequence[int],
    perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Chain:
    """The chain of some images. z0: standardised latents. eps: one noise an image, the same at all times. image8: uint8
    originals, with what `decode` gives in [-1, 1]. perceptual: two images [B, 3, H, W] in [-1, 1] → [B].
    """
    image_BHWC, dimensions = image8_BHWC.cpu().double(), math.log(2) * image8_BHWC[0].numel()
    nats_B = prior_nats(schedule, z0_BCHW, times[0])
    bits, mse, distance = [], [], []
    for t, s in zip(times, [*times[1:], None], strict=True):
        t_B = at_time(t, z0_BCHW)
        predicted_BCHW = denoise(schedule.zt(z0_BCHW, eps_BCHW, t_B), t_B, cond).z0
        recon_BHWC = to_uint8(decode(predicted_BCHW))
        bits.append(nats_B / dimensions)
        mse.append((recon_BHWC.cpu().double() - image_BHWC).square().flatten(1).mean(1))
        if perceptual is not None:
            distance.append(perceptual(to_float(image8_BHWC), to_float(recon_BHWC)).reshape(-1).cpu().double())
        if s is not None:
            error_B = (predicted_BCHW.cpu().double() - z0_BCHW.cpu().double()).square().flatten(1).sum(1)
            nats_B = nats_B + (snr(schedule, s) - snr(schedule, t)) / 2 * error_B
    stacked = [torch.stack(rows).numpy() for rows in (bits, mse)]
    return Chain(stacked[0], stacked[1], torch.stack(distance).numpy() if distance else None)


def prior_nats(schedule: Schedule, z0_BCHW: Tensor, t: int) -> Tensor:
    """KL(q(z_t | z_0) ‖ N(0, I)) of each latent, float64 [B]: what z_T costs."""
    alpha, sigma = schedule.at(t)
    square_B = z0_BCHW.cpu().double().square().flatten(1).sum(1)
    return (alpha**2 * square_B + z0_BCHW[0].numel() * (sigma**2 - 1 - math.log(sigma**2))) / 2


def snr(schedule: Schedule, t: int) -> float:
    alpha, sigma = schedule.at(t)
    return alpha**2 / sigma**2


def joined(parts: Sequence[Chain]) -> Chain:
    """The chains of several batches as one."""
    perceptual = [part.perceptual_SN for part in parts if part.perceptual_SN is not None]
    return Chain(
        np.concatenate([part.bits_SN for part in parts], axis=1),
        np.concatenate([part.mse_SN for part in parts], axis=1),
        np.concatenate(perceptual, axis=1) if perceptual else None,
    )


def curves(chain: Chain, bootstrap: int, seed: int) -> dict[str, dict[str, Any]]:
    """bits, rmse and perceptual → at each time the mean over images with its 95 % interval and, at the last, its replicates.

    RMSE is the root of the mean over images, as it is of a set of pixels.
    """
    check_bootstrap(bootstrap)
    counts_RN = resamples(chain.bits_SN.shape[1], bootstrap, seed)
    found: dict[str, dict[str, Any]] = {}
    for name, value_SN in (("bits", chain.bits_SN), ("rmse", chain.mse_SN), ("perceptual", chain.perceptual_SN)):
        if value_SN is None:
            continue
        value_S, replicate_SR = value_SN.mean(axis=1), value_SN @ counts_RN.T / value_SN.shape[1]
        if name == "rmse":
            value_S, replicate_SR = np.sqrt(value_S), np.sqrt(replicate_SR)
        bounds = [centred(float(v), r_R, 0.0) for v, r_R in zip(value_S, replicate_SR, strict=True)]
        found[name] = {
            "value": value_S.tolist(), "low": [b.low for b in bounds], "high": [b.high for b in bounds],
            "replicates": replicate_SR[-1].tolist(),
        }  # fmt: skip
    return found


@dataclass(frozen=True)
class RateDistortion(Metric):
    """Bits of the whole chain and what is lost at its end; the curve is on the page. Needs no samples.

    steps   times of the chain, at most: evenly in log SNR; those of the schedule (1000) give Ho's own bound
    images  of val, at most
    """

    name: ClassVar[str] = "rate_distortion"
    label: ClassVar[str] = "rate and distortion"
    needs: ClassVar[tuple[str, ...]] = ("stage:chain",)
    interval: ClassVar[str] = "over val images"
    covers: ClassVar[str] = "the mean over other images of the same data"
    estimator: ClassVar[str] = "one noise an image, latents are posterior means, no term after the least noisy time"

    steps: Annotated[int, Range(at_least=2, at_most=100_000)] = 100
    images: Annotated[int, Range(at_least=2, at_most=1_000_000)] = 64

    def compute(self, inputs: Inputs) -> Computed:
        found = json.loads((inputs.stages["chain"] / FILE).read_text(encoding="utf-8"))
        scores = {}
        for kind, curve in found["curves"].items():
            method = f"{WORDS[kind]}; {interval_text(len(curve['replicates']))}"
            ends = curve["value"][-1], curve["low"][-1], curve["high"][-1]
            scores[f"{self.name}_{kind}"] = Score(
                *ends, found["images"], method, found["seed"], tuple(curve["replicates"])
            )
        return Computed(scores)

    def declarations(self) -> dict[str, dict[str, object]]:
        common = self.declaration()
        better: dict[str, Literal["lower"] | None] = {"bits": None, "rmse": "lower", "perceptual": "lower"}
        return {
            f"{self.name}_{kind}": common | {"label": LABELS[kind], "unit": UNITS[kind], "better": better[kind]}
            for kind in WORDS
        }
