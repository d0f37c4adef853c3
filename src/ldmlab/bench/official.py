"""The official code's autoencoder training step, put together from our layers so that it holds the memory theirs holds.

Sources: CompVis/latent-diffusion ldm/modules/diffusionmodules/model.py (`nonlinearity`, `AttnBlock`),
ldm/modules/losses/contperceptual.py and vqperceptual.py, ldm/models/autoencoder.py (`training_step`), taming/modules/losses/
lpips.py; the order of calls is that of Lightning 1.4's automatic optimisation: for each optimiser forward, zero_grad,
backward, step, with the other optimiser's parameters switched off. PyTorch's own defaults (zero_grad to None) are today's,
which favours it. Not copied: the encoder's list `hs` of all its maps, which only matters without gradients.

Shape letters: B batch, C channels, H W space, N = H·W positions.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldmlab.autoencoders.autoencoder import Autoencoder
from ldmlab.autoencoders.conv import Attention
from ldmlab.autoencoders.losses import ADAPTIVE_EPS, ADAPTIVE_MAX, FirstStageLoss
from ldmlab.autoencoders.norm import NormSwish
from ldmlab.autoencoders.perceptual import LPIPS
from ldmlab.training.autoencoder_loss import frozen


class PlainNormSwish(NormSwish):
    """GroupNorm, then x·sigmoid(x) as two operators: the input, the normalised map, the sigmoid and the product are kept."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW = F.group_norm(x_BCHW, self.num_groups, self.weight, self.bias, self.eps)
        return y_BCHW * torch.sigmoid(y_BCHW)


class PlainAttention(Attention):
    """Attention with its matrix of N×N weights written out."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        B, C, H, W = x_BCHW.shape
        h_BCHW = self.norm(x_BCHW)
        q_BCHW, k_BCHW, v_BCHW = self.q(h_BCHW), self.k(h_BCHW), self.v(h_BCHW)
        q_BNC = q_BCHW.reshape(B, C, H * W).permute(0, 2, 1)
        weight_BNN = torch.bmm(q_BNC, k_BCHW.reshape(B, C, H * W)) * int(C) ** (-0.5)
        weight_BNN = F.softmax(weight_BNN, dim=2).permute(0, 2, 1)
        h_BCHW = torch.bmm(v_BCHW.reshape(B, C, H * W), weight_BNN).reshape(B, C, H, W)
        return x_BCHW + self.proj_out(h_BCHW)


PLAIN = {NormSwish: PlainNormSwish, Attention: PlainAttention}


def official_layers(ae: Autoencoder) -> Autoencoder:
    """`ae` itself, with its modules changed in place: the same weights, but it computes, and remembers, as theirs do."""
    for module in ae.modules():
        module.__class__ = PLAIN.get(type(module), type(module))  # no new state: the classes differ in `forward` alone
        if hasattr(module, "checkpointing"):
            module.checkpointing = False  # type: ignore[assignment]  # there is none in the official autoencoders
    return ae


class OfficialStep:
    """One batch of training: `autoencoder_turn` then `discriminator_turn`, each with its optimiser (after disc_start)."""

    def __init__(self, ae: Autoencoder, loss: FirstStageLoss, optimizers: dict[str, torch.optim.Optimizer]):
        self.ae, self.terms, self.optimizers = ae, loss, optimizers
        self.logvar = nn.Parameter(
            torch.zeros((), device=next(ae.parameters()).device)
        )  # in no optimiser, as officially

    def __call__(self, image_BCHW: Tensor, noise_BCHW: Tensor | None) -> None:
        with frozen(self.terms.discriminator):
            loss = self.autoencoder_loss(image_BCHW, noise_BCHW)
            self._step("autoencoder", loss)
        del loss
        if self.terms.discriminator is not None:
            with frozen(self.ae):
                loss = self.discriminator_loss(image_BCHW, noise_BCHW)
                self._step("discriminator", loss)

    def _step(self, player: str, loss: Tensor) -> None:
        self.optimizers[player].zero_grad()
        loss.backward()
        self.optimizers[player].step()

    def autoencoder_loss(self, image_BCHW: Tensor, noise_BCHW: Tensor | None) -> Tensor:
        """LPIPSWithDiscriminator.forward with optimizer_idx 0."""
        terms = self.terms
        recon = self.ae(image_BCHW, noise_BCHW)
        recon_BCHW = recon.image_BCHW
        rec_BCHW = torch.abs(image_BCHW - recon_BCHW)
        if terms.perceptual is not None:
            distance_B111 = distance(terms.perceptual, image_BCHW, recon_BCHW)
            rec_BCHW = rec_BCHW + terms.perceptual_weight * distance_B111
        if terms.reduction == "sum":
            nll_BCHW = rec_BCHW / torch.exp(self.logvar) + self.logvar
            nll = torch.sum(nll_BCHW) / nll_BCHW.shape[0]
        else:
            nll = torch.mean(rec_BCHW)
        total = nll + recon.loss
        if terms.discriminator is not None:
            logits = terms.discriminator(recon_BCHW, terms.groups(len(image_BCHW)))
            generator = -torch.mean(logits)
            total = total + terms.disc_weight * self.adaptive_weight(nll, generator) * generator
        return total

    def adaptive_weight(self, nll: Tensor, generator: Tensor) -> Tensor:
        """calculate_adaptive_weight."""
        last = self.ae.last_layer
        assert last is not None
        grads = [torch.autograd.grad(term, last, retain_graph=True)[0] for term in (nll, generator)]
        weight = torch.norm(grads[0]) / (torch.norm(grads[1]) + ADAPTIVE_EPS)
        return torch.clamp(weight, 0.0, ADAPTIVE_MAX).detach()

    def discriminator_loss(self, image_BCHW: Tensor, noise_BCHW: Tensor | None) -> Tensor:
        """LPIPSWithDiscriminator.forward with optimizer_idx 1: the reconstruction is computed again, the hinge loss follows."""
        discriminator, groups = self.terms.discriminator, self.terms.groups(len(image_BCHW))
        assert discriminator is not None
        recon_BCHW = self.ae(image_BCHW, noise_BCHW).image_BCHW
        logits_real = discriminator(image_BCHW.contiguous().detach(), groups)
        logits_fake = discriminator(recon_BCHW.contiguous().detach(), groups)
        return 0.5 * (torch.mean(F.relu(1.0 - logits_real)) + torch.mean(F.relu(1.0 + logits_fake)))


def distance(perceptual: nn.Module, image_BCHW: Tensor, recon_BCHW: Tensor) -> Tensor:
    """taming's LPIPS.forward, [B, 1, 1, 1]: all maps of both images, then their differences, then the heads.

    Left out: the heads' dropout, which is active in official training (docs/paper.md#first-stage-losses) and would hold more. Other
    distances than LPIPS have no official code; ours is taken.
    """
    if not isinstance(perceptual, LPIPS):
        return perceptual(image_BCHW, recon_BCHW).view(-1, 1, 1, 1)
    maps0, maps1 = perceptual.feature_maps(image_BCHW), perceptual.feature_maps(recon_BCHW)
    differences = [(_unit(a) - _unit(b)) ** 2 for a, b in zip(maps0, maps1, strict=True)]
    layers = [perceptual.weigh(n, d).mean([2, 3], keepdim=True) for n, d in enumerate(differences)]
    value = layers[0]
    for layer in layers[1:]:
        value = value + layer
    return value


def _unit(x_BCHW: Tensor) -> Tensor:
    return x_BCHW / (torch.sqrt(torch.sum(x_BCHW**2, dim=1, keepdim=True)) + 1e-10)
