import numpy as np
import pytest
import torch

from ldmlab.autoencoders.kmeans import kmeans, nearest, thinned
from ldmlab.autoencoders.regularisers.vq import VQ
from ldmlab.autoencoders.regularisers.vq_ema import EMAVQ
from ldmlab.errors import ConfigError


def blobs(centres=16, each=50):
    generator = torch.Generator().manual_seed(0)
    centre_KC = torch.randn(centres, 2, generator=generator) * 10
    return centre_KC, (centre_KC[:, None] + 0.05 * torch.randn(centres, each, 2, generator=generator)).flatten(0, 1)


def distortion(x, code):
    return (x - code[nearest(x, code)]).square().sum(1).mean().item()


def test_finds_blobs_no_worse_than_scipy():
    from scipy.cluster.vq import kmeans2

    _, x = blobs()
    code = kmeans(x, 16)
    theirs, _ = kmeans2(x.double().numpy(), 16, iter=25, minit="++", seed=np.random.default_rng(0))
    assert distortion(x, code) <= 1.05 * distortion(x, torch.from_numpy(theirs).float()) + 1e-6
    assert len(nearest(x, code).unique()) == 16


def test_each_code_is_the_mean_of_its_rows_in_the_end():
    x = torch.randn(500, 3, generator=torch.Generator().manual_seed(1))
    code = kmeans(x, 8, rounds=200)
    index = nearest(x, code)
    for k in range(8):
        torch.testing.assert_close(code[k], x[index == k].mean(0), atol=1e-5, rtol=0)


def test_same_rows_same_codes_and_more_rounds_are_no_worse():
    x = torch.randn(400, 2, generator=torch.Generator().manual_seed(2))
    assert torch.equal(kmeans(x, 20), kmeans(x, 20))
    losses = [distortion(x, kmeans(x, 20, rounds=n)) for n in (0, 1, 3, 10)]
    assert losses == sorted(losses, reverse=True)


def test_thinned_draws_rows_without_repetition():
    x = torch.arange(100).view(100, 1).float()
    few = thinned(x, 30)
    assert len(few) == 30 == len(few.unique()) and torch.equal(few.flatten(), few.flatten().sort().values)
    assert thinned(x, 100) is x


@pytest.mark.parametrize("kind", [VQ, EMAVQ])
def test_a_started_codebook_is_in_use(kind):
    _, x = blobs(centres=8, each=64)
    moments = x[torch.randperm(512, generator=torch.Generator().manual_seed(0))].view(8, 8, 8, 2).permute(0, 3, 1, 2)
    plain, started = kind(2, 64), kind(2, 64, start="kmeans")
    started.start(iter(moments.split(3)))
    assert started.starts and not plain.starts
    assert (started.counts(moments) > 0).float().mean() > 0.9 > (plain.counts(moments) > 0).float().mean()
    if kind is EMAVQ:
        torch.testing.assert_close(started.sums_KC / started.counts_K[:, None], started.embedding.weight)


def test_too_few_vectors_are_named():
    with pytest.raises(
        ConfigError, match=r"ae\.regulariser\.codes=64: the training images have 10 latent vectors only"
    ):
        kmeans(torch.randn(10, 2), 64)
