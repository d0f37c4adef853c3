"""The moving-average codebook: closed form, oracle, restarts, and independence of micro-batches and ranks."""

import pytest
import torch
from torch import Tensor

from ldmlab.autoencoders.regularisers import vq as vq_module
from ldmlab.autoencoders.regularisers.vq import VQ
from ldmlab.autoencoders.regularisers.vq_ema import EMAVQ
from ldmlab.errors import ConfigError


def alone(tensor: Tensor) -> Tensor:
    return tensor.unsqueeze(0)


def moments(seed: int = 0, images: int = 4, c: int = 3, size: int = 6) -> Tensor:
    return torch.randn(images, c, size, size, generator=torch.Generator().manual_seed(seed))


def fresh(**options) -> EMAVQ:
    torch.manual_seed(0)
    return EMAVQ(3, 16, **{"restart_below": 0.0, **options})


def test_codes_become_the_means_of_their_vectors():
    """With γ → 0 one step is one iteration of Lloyd's algorithm."""
    vq, h = fresh(decay=1e-9), moments()
    vq.embedding.weight.copy_(h.permute(0, 2, 3, 1).reshape(-1, 3)[:16])
    index = vq.indices(h).flatten()
    vq(h, None)
    vq.on_step_end(alone)
    rows = h.permute(0, 2, 3, 1).reshape(-1, 3)
    for k in index.unique():
        torch.testing.assert_close(vq.embedding.weight[k], rows[index == k].mean(0), rtol=1e-3, atol=1e-3)


def test_equals_vector_quantize_pytorch():
    library = pytest.importorskip("vector_quantize_pytorch")
    vq = fresh(decay=0.9, beta=0.25)
    reference = library.VectorQuantize(
        dim=3, codebook_size=16, decay=0.9, commitment_weight=0.25, threshold_ema_dead_code=0, accept_image_fmap=True
    )
    book = reference._codebook
    for name, value in (("embed", vq.embedding.weight), ("embed_avg", vq.sums_KC), ("cluster_size", vq.counts_K)):
        getattr(book, name).copy_(value.detach().view_as(getattr(book, name)))
    reference.train()
    for step in range(4):
        h = moments(step)
        z, loss, _ = vq(h, None)
        want_z, _, want_loss = reference(h)
        torch.testing.assert_close(z, want_z)
        torch.testing.assert_close(loss, want_loss.view(()))
        vq.on_step_end(alone)
        torch.testing.assert_close(vq.embedding.weight.detach(), book.embed[0], rtol=1e-4, atol=1e-5)


def test_micro_batches_and_ranks_change_nothing():
    whole, cut, ranks = fresh(restart_below=0.5), fresh(restart_below=0.5), [fresh(restart_below=0.5) for _ in range(2)]
    for step in range(5):
        h = moments(step)
        whole(h, None)
        whole.on_step_end(alone)
        for part in h.split(1):
            cut(part, None)
        cut.on_step_end(alone)
        for rank, part in zip(ranks, h.chunk(2), strict=True):
            rank(part, None)
        # what an all-gather would hand to rank 0: each rank's own contribution, in turn
        theirs: list[list[Tensor]] = [[], []]
        for rank, kept in zip(ranks, theirs, strict=True):
            probe = fresh(restart_below=0.5)
            probe.load_state_dict(rank.state_dict())
            probe._seen, probe._used = list(rank._seen), rank._used

            def spy(tensor: Tensor, kept=kept) -> Tensor:
                kept.append(tensor)
                return tensor.unsqueeze(0)

            probe.on_step_end(spy)
        for rank in ranks:
            pairs = iter(list(zip(*theirs, strict=True)))
            rank.on_step_end(lambda tensor, pairs=pairs: torch.stack(list(next(pairs))))
    for other in (cut, *ranks):
        torch.testing.assert_close(other.embedding.weight, whole.embedding.weight, rtol=1e-5, atol=1e-6)
        assert torch.equal(other.step, whole.step)


def test_dead_codes_move_to_the_data_and_live_ones_stay():
    vq = fresh(decay=0.5, restart_below=0.1)
    vq.embedding.weight[8:] = 100.0  # nobody's nearest
    vq.sums_KC.copy_(vq.embedding.weight)
    h, restarted = moments(), 0.0
    for _ in range(8):
        vq(h, None)
        restarted += vq.on_step_end(alone)["codes_restarted"].item()
    rows = h.permute(0, 2, 3, 1).reshape(-1, 3)
    assert restarted >= 8 and vq.embedding.weight.abs().max() <= rows.abs().max() + 1e-4
    assert (vq.counts(h) > 0).float().mean() > 0.9


def test_only_training_passes_move_the_codebook():
    vq = fresh()
    before = vq.embedding.weight.clone()
    with torch.no_grad():
        vq(moments(), None)
    vq.eval()
    vq(moments(), None)
    assert vq.on_step_end(alone) == {} and torch.equal(vq.embedding.weight, before)
    assert not any(p.requires_grad for p in vq.parameters())


@pytest.mark.parametrize("make", [lambda: VQ(3, 64), lambda: EMAVQ(3, 64)])
def test_usage_over_a_window(monkeypatch, make):
    monkeypatch.setattr(vq_module, "WINDOW", 3)
    vq, one = make(), torch.zeros(1, 3, 1, 1)
    seen = []
    for k in (1, 2, 3, 3, 3):
        one = vq.embedding.weight[k].detach().view(1, 3, 1, 1).clone().requires_grad_()
        vq(one, None)
        seen.append(round(64 * vq.on_step_end(alone)["codebook_usage_window"].item()))
    assert seen == [1, 2, 3, 2, 1]


def test_impossible_options():
    with pytest.raises(ConfigError, match="decay=1"):
        fresh(decay=1.0)
    with pytest.raises(ConfigError, match="restart_below=1"):
        fresh(restart_below=1.0)
