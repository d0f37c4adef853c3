"""A linear encoder that looks beyond its own patch: the lapped transform that principal components of patches begin.

Neighbouring patches repeat one another, so components of single patches waste part of their c numbers. Here encoder and decoder
are both w×w convolutions over patches, found by alternating least squares: the best latents for a decoder, the encoder that
comes nearest to them, the best decoder for that encoder.

Shape letters: B batch, H W space of the latent, Q coefficients of a patch, C latent channels, W×W window, T taps (C·W² or Q·W²,
and a constant), M = B·H·W positions.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

RIDGE = 1e-4  # of the mean square of the taps
CONJUGATE_STEPS = 8  # towards the best latents of a decoder, in each round
CHUNK = 64  # images at once


class Encoder(NamedTuple):
    """z = conv(coefficients, context) + offset, edges replicated."""

    context_CQWW: Tensor
    offset_C: Tensor


def windowed(x_BCHW: Tensor, weight_OCWW: Tensor, bias_O: Tensor) -> Tensor:
    """Convolution with replicated edges."""
    edge = weight_OCWW.shape[-1] // 2
    return F.conv2d(F.pad(x_BCHW, (edge,) * 4, mode="replicate") if edge else x_BCHW, weight_OCWW, bias_O)


def taps(x_BCHW: Tensor, window: int) -> Tensor:
    """What such a convolution reads at each position, and a 1: [M, T]."""
    edge = window // 2
    padded_BCHW = F.pad(x_BCHW, (edge,) * 4, mode="replicate") if edge else x_BCHW
    tap_MT = F.unfold(padded_BCHW, window).transpose(1, 2).flatten(0, 1)
    return torch.cat([tap_MT, tap_MT.new_ones(len(tap_MT), 1)], dim=1)


class NormalEquations:
    """Sums of tapᵀ·tap and tapᵀ·target over any number of batches, float64; the last tap is the constant."""

    def __init__(self) -> None:
        self.count = 0
        self.normal_TT: Tensor = torch.zeros(0)
        self.target_TO: Tensor = torch.zeros(0)

    def update(self, tap_MT: Tensor, target_MO: Tensor) -> None:
        """Take in a batch of rows."""
        tap_MT, target_MO = tap_MT.double(), target_MO.double()
        normal_TT, target_TO = tap_MT.T @ tap_MT, tap_MT.T @ target_MO
        self.normal_TT = self.normal_TT + normal_TT if self.count else normal_TT
        self.target_TO = self.target_TO + target_TO if self.count else target_TO
        self.count += len(tap_MT)

    def solve(self, ridge: float | Tensor) -> tuple[Tensor, Tensor]:
        """Weight [T − 1, O] and constant [O]; `ridge` is added to each tap's square but the constant's."""
        ridge_T = torch.full_like(self.normal_TT[0], 1.0) * ridge
        ridge_T[-1] = 0
        weight_TO = torch.linalg.solve(self.normal_TT + ridge_T.diag(), self.target_TO)
        return weight_TO[:-1], weight_TO[-1]


def level(variance_C: Tensor, whiten: bool) -> Tensor:
    """Of each channel its own variance, or (a codebook wants distances kept) the mean for all."""
    return variance_C if whiten else variance_C.mean().expand_as(variance_C)


def least_squares(x_BCHW: Tensor, y_BOHW: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Weight [O, C, W, W] and bias [O] of the convolution that takes x nearest to y; sums in float64."""
    equations = NormalEquations()
    for x_chunk, y_chunk in zip(x_BCHW.split(CHUNK), y_BOHW.split(CHUNK), strict=True):
        equations.update(taps(x_chunk, window), y_chunk.flatten(2).transpose(1, 2).flatten(0, 1))
    weight_TO, bias_O = equations.solve(RIDGE * equations.normal_TT.diagonal().mean())
    shape = (y_BOHW.shape[1], x_BCHW.shape[1], window, window)
    return weight_TO.to(x_BCHW.dtype).T.reshape(shape), bias_O.to(x_BCHW.dtype)


def best_latents(target_BQHW: Tensor, start_BCHW: Tensor, weight_QCWW: Tensor, bias_Q: Tensor) -> Tensor:
    """Latents that this decoder takes nearest to the targets, by conjugate gradients from the start."""
    zero_Q = torch.zeros_like(bias_Q)

    def gradient(residual_BQHW: Tensor) -> Tensor:
        with torch.enable_grad():
            z_BCHW = torch.zeros_like(start_BCHW, requires_grad=True)
            decoded = windowed(z_BCHW, weight_QCWW, zero_Q)
        return torch.autograd.grad(decoded, z_BCHW, residual_BQHW)[0]

    def norm(r_BCHW: Tensor) -> Tensor:
        return r_BCHW.square().sum((1, 2, 3), keepdim=True)

    z_BCHW = start_BCHW
    r_BCHW = gradient(target_BQHW - windowed(z_BCHW, weight_QCWW, bias_Q))
    p_BCHW, size = r_BCHW, norm(r_BCHW)
    for _ in range(CONJUGATE_STEPS):
        Ap_BCHW = gradient(windowed(p_BCHW, weight_QCWW, zero_Q))
        step = size / (p_BCHW * Ap_BCHW).sum((1, 2, 3), keepdim=True).clamp_min(1e-12)
        z_BCHW, r_BCHW = z_BCHW + step * p_BCHW, r_BCHW - step * Ap_BCHW
        after = norm(r_BCHW)
        p_BCHW, size = r_BCHW + after / size.clamp_min(1e-12) * p_BCHW, after
    return z_BCHW


@torch.no_grad()
def lapped(coefficient_BQHW: Tensor, c: int, window: int, rounds: int, whiten: bool) -> Encoder:
    """The encoder after so many rounds from the first c coefficients, each latent channel (or all together) of unit variance."""
    z_BCHW = _standardised(coefficient_BQHW[:, :c], whiten)[0]
    encoder = Encoder(z_BCHW.new_zeros(0), z_BCHW.new_zeros(0))
    for _ in range(rounds):
        decoder = least_squares(z_BCHW, coefficient_BQHW, window)
        pairs = zip(coefficient_BQHW.split(CHUNK), z_BCHW.split(CHUNK), strict=True)
        best_BCHW = torch.cat([best_latents(target, start, *decoder) for target, start in pairs])
        weight, bias = least_squares(coefficient_BQHW, best_BCHW, window)
        z_BCHW = torch.cat([windowed(part, weight, bias) for part in coefficient_BQHW.split(CHUNK)])
        z_BCHW, scale_C, shift_C = _standardised(z_BCHW, whiten)
        encoder = Encoder(weight * scale_C.view(-1, 1, 1, 1), (bias - shift_C) * scale_C)
    return encoder


def _standardised(z_BCHW: Tensor, whiten: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(z − shift) · scale, and both [C]: unit variance of each channel, or on average."""
    shift_C = z_BCHW.mean((0, 2, 3))
    variance_C = (z_BCHW - shift_C.view(-1, 1, 1)).square().mean((0, 2, 3))
    scale_C = level(variance_C, whiten).rsqrt()
    return (z_BCHW - shift_C.view(-1, 1, 1)) * scale_C.view(-1, 1, 1), scale_C, shift_C
