import pytest
import torch

from ldmlab.autoencoders.regularisers.base import Posterior
from ldmlab.autoencoders.regularisers.kl import KL
from ldmlab.autoencoders.scale import LatentStatistics, measure_scale
from ldmlab.errors import TrainingError


@pytest.fixture
def moments():
    torch.manual_seed(0)
    mean = torch.randn(48, 3, 4, 4) * torch.tensor([0.5, 2.0, 1.0]).view(3, 1, 1) + torch.tensor([1.0, 0, -4]).view(
        3, 1, 1
    )
    return torch.cat([mean, torch.randn(48, 3, 4, 4) - 1], 1)


def test_statistics_are_those_of_samples(moments):
    kl, statistics = KL(), LatentStatistics(3)
    for part in moments.split(20):  # uneven batches
        statistics.update(kl.posterior(part))
    samples = torch.cat([kl.sample(moments, torch.randn(48, 3, 4, 4)) for _ in range(400)]).double()
    per_channel = samples.transpose(0, 1).flatten(1)
    torch.testing.assert_close(statistics.mean_C, per_channel.mean(1), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(statistics.std_C, per_channel.std(1), rtol=1e-2, atol=0)
    assert statistics.std == pytest.approx(samples.std().item(), rel=1e-2)
    assert statistics.mean == pytest.approx(samples.mean().item(), abs=1e-2)


def test_statistics_without_variance_are_exact_and_add_up(moments):
    whole, parts = LatentStatistics(6), [LatentStatistics(6), LatentStatistics(6)]
    whole.update(Posterior(moments, None))
    for statistics, half in zip(parts, moments.split(24), strict=True):
        statistics.update(Posterior(half, None))
    parts[0].sums_3C = parts[0].sums_3C + parts[1].sums_3C
    flat = moments.double().transpose(0, 1).flatten(1)
    for statistics in (whole, parts[0]):
        torch.testing.assert_close(statistics.std_C, flat.std(1, correction=0))
        assert statistics.std == pytest.approx(moments.double().std(correction=0).item())


def test_modes(moments):
    batches = [Posterior(part, None) for part in moments.split(16)]
    scale, shift = measure_scale(iter(batches), "global")
    assert scale.flatten().tolist() == pytest.approx([1 / moments.std(correction=0).item()] * 6)
    assert not shift.any()
    scale, shift = measure_scale(iter(batches), "per_channel")
    z = ((moments - shift) * scale).transpose(0, 1).flatten(1)
    torch.testing.assert_close(z.mean(1), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.std(1, correction=0), torch.ones(6))
    scale, shift = measure_scale(iter(batches), "first_batch_std")
    assert scale.flatten().tolist() == pytest.approx([1 / moments[:16].std(correction=0).item()] * 6)
    assert not shift.any()
    scale, shift = measure_scale(iter([]), "none")
    assert scale.item() == 1 and shift.item() == 0


def test_a_collapsed_latent_is_refused():
    with pytest.raises(TrainingError, match="has failed"):
        measure_scale([Posterior(torch.ones(4, 2, 2, 2), None)], "global")
    with pytest.raises(ValueError, match="no batch"):
        measure_scale([], "global")
