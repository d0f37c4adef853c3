import pytest
import torch

from ldmlab.autoencoders.autoencoder import Autoencoder
from ldmlab.autoencoders.conv import ConvNetwork
from ldmlab.autoencoders.discriminator import PatchGAN
from ldmlab.autoencoders.losses import FirstStageLoss
from ldmlab.autoencoders.regularisers.kl import KL
from ldmlab.autoencoders.regularisers.vq import VQ
from ldmlab.randomness import Draws
from ldmlab.training.autoencoder_loss import AutoencoderLoss


def make(regulariser=None, **loss_options):
    torch.manual_seed(0)
    regulariser = regulariser or KL()
    model = Autoencoder(ConvNetwork(2, [1, 2], regulariser.channels_in, width=8, blocks=1), regulariser)
    options = dict(discriminator=PatchGAN(layers=2, width=8), norm_images=2) | loss_options
    return AutoencoderLoss(model, FirstStageLoss("sum", **options), Draws(0))


def batch(n=4, first=0):
    g = torch.Generator().manual_seed(first)
    return {"image": torch.rand(n, 3, 16, 16, generator=g) * 2 - 1, "position": torch.arange(first, first + n)}


def copy(module):
    return {n: p.detach().clone() for n, p in module.state_dict().items()}


def changed(module, before):
    return {n for n, p in module.state_dict().items() if not torch.equal(p, before[n])}


@pytest.mark.parametrize("regulariser", [KL, lambda: VQ(2, 16)])
def test_each_optimiser_changes_only_its_player(regulariser):
    stage = make(regulariser())
    optimisers = {player: torch.optim.Adam(stage.modules[player].parameters(), 1e-3) for player in stage.players}
    assert stage.players == ("autoencoder", "discriminator")
    for player, other in (stage.players, stage.players[::-1]):
        before = {name: copy(module) for name, module in stage.modules.items()}
        loss, logs = stage.loss(batch(), player, images_seen=0)
        loss.backward()
        assert all(p.grad is None for p in stage.modules[other].parameters())
        assert all(p.requires_grad for module in stage.modules.values() for p in module.parameters())
        assert all(not v.requires_grad and v.ndim == 0 for v in logs.values())
        optimisers[player].step()
        optimisers[player].zero_grad()
        assert not changed(stage.modules[other], before[other])
        parameters = {n for n, _ in stage.modules[player].named_parameters()}
        if player == "discriminator":  # while all logits lie in (-1, 1) both hinge terms pull its last bias equally
            parameters -= {"main.8.bias"}
        assert changed(stage.modules[player], before[player]) == parameters


def test_the_discriminator_learns_to_tell_and_the_generator_term_pulls_the_other_way():
    stage = make(perceptual=None)
    optimiser = torch.optim.Adam(stage.modules["discriminator"].parameters(), 1e-3)
    losses = []
    for step in range(20):
        loss, _ = stage.loss(batch(), "discriminator", step)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_disc_start_gates_both_players():
    stage = make(disc_start=8)
    assert stage.active("autoencoder", 0) and not stage.active("discriminator", 7) and stage.active("discriminator", 8)
    assert "generator" not in stage.loss(batch(), "autoencoder", 7)[1]
    logs = stage.loss(batch(), "autoencoder", 8)[1]
    assert {"loss", "rec", "nll", "regulariser", "kl", "kl_bits", "generator", "adaptive_weight"} <= set(logs)
    assert {"loss", "logits_real", "logits_fake"} == set(stage.loss(batch(), "discriminator", 8)[1])


def test_one_player_without_a_discriminator():
    stage = make(discriminator=None)
    assert stage.players == ("autoencoder",) and not stage.active("discriminator", 10**9)


def test_noise_belongs_to_the_position_and_each_turn_has_its_own():
    stage = make(discriminator=None)
    whole = batch(4)
    halves = [{k: v[i : i + 2] for k, v in whole.items()} for i in (0, 2)]
    loss = stage.loss(whole, "autoencoder", 0)[0]
    parts = [stage.loss(half, "autoencoder", 0)[0] for half in halves]
    torch.testing.assert_close(loss, sum(parts) / 2)
    assert not torch.equal(stage._noise(whole, "autoencoder"), stage._noise(whole, "discriminator"))


def test_whole_batch_equals_accumulated_groups_with_the_adversarial_term():
    stage = make()
    whole = batch(4)
    gradients = []
    for size in (4, 2):
        stage.modules["autoencoder"].zero_grad()
        for i in range(0, 4, size):
            part = {k: v[i : i + size] for k, v in whole.items()}
            (stage.loss(part, "autoencoder", 0)[0] * size / 4).backward()
        gradients.append([p.grad.clone() for p in stage.modules["autoencoder"].parameters()])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-3)


class Wrapped(torch.nn.Module):
    """Stands for a distributed wrapper: counts the calls that would synchronise."""

    def __init__(self, module):
        super().__init__()
        self.module, self.calls = module, 0

    def forward(self, *args):
        self.calls += 1
        return self.module(*args)


def test_each_wrapper_is_called_once_and_in_its_own_turn_only():
    stage = make()
    for player in stage.players:
        stage.modules[player] = Wrapped(stage.modules[player])
    for turn, want in (("autoencoder", (1, 0)), ("discriminator", (1, 1))):
        stage.loss(batch(), turn, 0)
        assert tuple(m.calls for m in stage.modules.values()) == want


def test_training_reduces_the_error():
    stage = make(discriminator=None)
    optimiser = torch.optim.Adam(stage.modules["autoencoder"].parameters(), 2e-3)
    errors = []
    for step in range(20):
        loss, logs = stage.loss(batch(4), "autoencoder", 4 * step)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        errors.append(logs["rec"].item())
    assert errors[-1] < 0.9 * errors[0]
