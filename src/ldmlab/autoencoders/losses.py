"""The first stages' loss (official ldm/modules/losses/contperceptual.py for KL, vqperceptual.py for VQ).

The official `logvar` parameter starts at 0 and belongs to no optimiser, so it stays 0 and never rescales the
reconstruction term. Here it is absent.

Shape letters: B batch, C channels, H W space, G groups.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from ldmlab.autoencoders.autoencoder import Reconstruction
from ldmlab.autoencoders.discriminator import PatchGAN
from ldmlab.errors import ConfigError
from ldmlab.ranges import Batch, MaybeImages, Weight

ADAPTIVE_EPS = 1e-4
ADAPTIVE_MAX = 1e4

Discriminate = Callable[[Tensor, list[int]], Tensor]  # images, sizes of the normalisation groups → logits


class Terms(NamedTuple):
    """A loss and what to log."""

    loss: Tensor
    logs: dict[str, Tensor]  # detached scalars


class FirstStageLoss(nn.Module):
    """Pixel term + perceptual distance on every pixel + the regulariser's loss + adversarial term with adaptive weight.

    reduction      sum: over elements, divided by the batch (the paper's KL models; a KL weight of 1e-6 belongs to it).
                   mean: over elements (the paper's VQ models)
    pixel          l1 (the paper's) or l2
    perceptual     image pairs → distance [B]; null for none. Its value is added to *every* element of the pixel term, as
                   in the official code, so under `sum` it counts 3·H·W times
    discriminator  PatchGAN; null for none
    disc_weight    multiplies the generator's term
    disc_start     images seen before the discriminator and the generator's term begin; before, neither is computed
    norm_images    consecutive images that share the discriminator's normalisation statistics and one adaptive weight. The
                   official code takes both from the batch of one GPU; fixed groups make the result independent of ranks
                   and micro-batches, as long as a micro-batch is a multiple of it. A rest forms a smaller last group
    adaptive       True: the generator's term is also multiplied by λ of `adaptive_weights`, as in the paper
    """

    def __init__(
        self,
        reduction: Literal["sum", "mean"],
        pixel: Literal["l1", "l2"] = "l1",
        perceptual: nn.Module | None = None,
        perceptual_weight: Weight = 1.0,
        discriminator: PatchGAN | None = None,
        disc_weight: Weight = 0.5,
        disc_start: MaybeImages = 0,
        norm_images: Batch = 8,
        adaptive: bool = True,
    ):
        super().__init__()
        for name, value, least in (
            ("perceptual_weight", perceptual_weight, 0),
            ("disc_weight", disc_weight, 0),
            ("disc_start", disc_start, 0),
            ("norm_images", norm_images, 1),
        ):
            if value < least:
                raise ConfigError(f"ae.loss.{name}={value} must be at least {least}.")
        self.reduction, self.pixel = reduction, pixel
        self.perceptual, self.perceptual_weight = perceptual, perceptual_weight
        self.discriminator = discriminator
        self.disc_weight, self.disc_start, self.norm_images = disc_weight, disc_start, norm_images
        self.adaptive = adaptive

    def adversarial(self, images_seen: int) -> bool:
        """Whether the generator's term and the discriminator's loss are on."""
        return self.discriminator is not None and images_seen >= self.disc_start

    def groups(self, images: int) -> list[int]:
        """Sizes of the groups that a batch falls into."""
        whole, rest = divmod(images, self.norm_images)
        return [self.norm_images] * whole + [rest] * (rest > 0)

    def reconstruction(self, image_BCHW: Tensor, recon_BCHW: Tensor) -> Terms:
        """Pixel and perceptual term; `rec` is logged per element and `perceptual` per image, whatever the reduction."""
        difference_BCHW = image_BCHW - recon_BCHW
        error_BCHW = difference_BCHW.abs() if self.pixel == "l1" else difference_BCHW.square()
        logs = {"rec": error_BCHW.detach().mean()}
        if self.perceptual is not None:
            distance_B = self.perceptual(image_BCHW, recon_BCHW)
            error_BCHW = error_BCHW + self.perceptual_weight * distance_B.view(-1, 1, 1, 1)
            logs["perceptual"] = distance_B.detach().mean()
        nll = error_BCHW.sum() / len(error_BCHW) if self.reduction == "sum" else error_BCHW.mean()
        return Terms(nll, logs)

    def autoencoder_loss(
        self,
        image_BCHW: Tensor,
        reconstruction: Reconstruction,
        last_layer: nn.Parameter | None,
        images_seen: int,
        discriminate: Discriminate | None = None,
    ) -> Terms:
        """The autoencoder's turn. `discriminate`, the frozen discriminator, is needed once `adversarial(images_seen)`."""
        nll, logs = self.reconstruction(image_BCHW, reconstruction.image_BCHW)
        loss = nll + reconstruction.loss
        logs |= {"nll": nll.detach(), "regulariser": reconstruction.loss.detach(), **reconstruction.stats}
        if self.adversarial(images_seen):
            if discriminate is None or last_layer is None:
                raise ValueError("the adversarial term needs a discriminator and a decoder with a last layer")
            groups = self.groups(len(image_BCHW))
            logits_B1HW = discriminate(reconstruction.image_BCHW, groups)
            generator_B = -logits_B1HW.flatten(1).mean(1)
            adaptive_G = (
                adaptive_weights(nll, generator_B.mean(), reconstruction, last_layer, groups)
                if self.adaptive
                else generator_B.new_ones(len(groups))
            )
            adaptive_B = adaptive_G.repeat_interleave(self.norm_images)[: len(generator_B)]  # the last may be smaller
            loss = loss + (self.disc_weight * adaptive_B * generator_B).mean()
            logs |= {"generator": generator_B.detach().mean(), "adaptive_weight": adaptive_G.mean()}
        return Terms(loss, {"loss": loss.detach(), **logs})

    def discriminator_loss(self, real_BCHW: Tensor, recon_BCHW: Tensor, discriminate: Discriminate) -> Terms:
        """The discriminator's turn: half the sum of the two hinge terms. It sees real, then reconstructed images, at once."""
        both = torch.cat([real_BCHW, recon_BCHW.detach()])
        logits_real, logits_fake = discriminate(both, 2 * self.groups(len(real_BCHW))).chunk(2)
        loss = 0.5 * (F.relu(1 - logits_real).mean() + F.relu(1 + logits_fake).mean())
        logs = {"loss": loss, "logits_real": logits_real.mean(), "logits_fake": logits_fake.mean()}
        return Terms(loss, {name: value.detach() for name, value in logs.items()})


def adaptive_weights(
    nll: Tensor, generator: Tensor, reconstruction: Reconstruction, last_layer: nn.Parameter, groups: list[int]
) -> Tensor:
    """λ = clip(‖∇nll‖ / (‖∇generator‖ + 1e-4), 0, 1e4) at the decoder's last convolution, one per group, detached, [G].

    The official code takes λ over the batch of one process, so it changes with the number of GPUs. Here each group of
    images that share the discriminator's statistics has its own, so λ changes with neither ranks nor micro-batches.

    Both terms are averages over the batch that couple no two groups, so a group's own average is B / size times its part
    in them. The gradient at the weight is the convolution of the last layer's input with the gradient at its output:
    one backward pass as far as the image serves every group. A last layer that emits s×s pixels a position
    (`pixel_shuffle` follows) has the image's gradient rearranged likewise.
    """
    features_BCHW = reconstruction.features_BCHW.detach().to(last_layer.dtype)
    side = math.isqrt(
        last_layer.shape[0] // reconstruction.image_BCHW.shape[1]
    )  # pixels a position, rearranged after it
    grads = [
        F.pixel_unshuffle(torch.autograd.grad(term, reconstruction.image_BCHW, retain_graph=True)[0], side)
        for term in (nll, generator)
    ]
    weights = []
    with torch.autocast(features_BCHW.device.type, enabled=False):
        split = zip(
            features_BCHW.split(groups), *(grad.to(last_layer.dtype).split(groups) for grad in grads), strict=True
        )
        for features, grad_nll, grad_generator in split:
            scale = len(features_BCHW) / len(features)
            norm_nll, norm_generator = (
                scale * conv2d_weight(features, list(last_layer.shape), grad, padding=1).norm()
                for grad in (grad_nll, grad_generator)
            )
            weights.append((norm_nll / (norm_generator + ADAPTIVE_EPS)).clamp(0, ADAPTIVE_MAX))
    return torch.stack(weights)
