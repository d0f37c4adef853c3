"""The latent cache holds what encoding on the fly gives, knows who made it, and says when it is stale."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from ldmlab.autoencoders.autoencoder import Autoencoder
from ldmlab.autoencoders.conv import ConvNetwork
from ldmlab.autoencoders.regularisers.kl import KL
from ldmlab.data import latent_cache as latents
from ldmlab.data.batches import Batches
from ldmlab.data.latent_cache import LatentCache, encode_all, verify
from ldmlab.data.shapes import FIELDS, FieldName, Shapes
from ldmlab.errors import DataError
from ldmlab.randomness import Draws
from ldmlab.store.ranks import Ranks


def make(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    dtype: str = "float16",
    ranks: int = 1,
    n: int = 70,
    fields: tuple[FieldName, ...] = ("label",),
) -> tuple[LatentCache, Autoencoder]:
    monkeypatch.setattr(latents, "BLOCK", 32)
    torch.manual_seed(0)
    regulariser = KL()
    ae = Autoencoder(ConvNetwork(2, [1, 2], regulariser.channels_in, width=32, blocks=1), regulariser).eval()
    data = Shapes(16, "train", train_images=n, flip=True, cached=False, fields=list(fields))
    folder.mkdir(exist_ok=True)
    for rank in reversed(range(ranks)):  # the main rank last, as a barrier would have it
        encode_all(data, ae.moments, folder, dtype, torch.device("cpu"), 20, Ranks(rank, ranks))
    return LatentCache(folder, data), ae


@pytest.mark.parametrize("dtype,tolerance", [("float16", 2e-3), ("float32", 1e-5)])
def test_cached_moments_are_the_encoder_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, tolerance: float
) -> None:
    cache, ae = make(tmp_path, monkeypatch, dtype)
    assert len(cache) == 70 and len(list(tmp_path.glob("moments-*.npy"))) == 3
    indices = [69, 0, 31, 32, 5]
    batch = cache.__getitems__(indices)
    assert batch["label"].tolist() == cache.dataset.labels()[indices].tolist()
    fresh = latents.encode(cache.dataset, indices, ae.moments, torch.device("cpu"))
    assert np.abs(batch["moments"].float().numpy() - fresh).max() < tolerance * np.abs(fresh).max()
    assert batch["moments"].dtype == getattr(torch, dtype)


def test_training_on_the_cache_equals_training_on_the_fly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same order, same flips, same posterior noise: the latents of each step agree to float16, so all their statistics do."""
    cache, ae = make(tmp_path, monkeypatch)
    device, draws = torch.device("cpu"), Draws(3)
    cached, direct = (Batches(d, 16, 16, 9, device) for d in (cache, cache.dataset))
    for images in range(0, 160, 16):
        a, b = cached.step(images)[0], direct.step(images)[0]
        assert torch.equal(a["label"], b["label"])
        noise = draws.randn("posterior", a["position"], (2, 8, 8), device)
        with torch.no_grad():
            z_a, z_b = ae.sample(a["moments"], noise), ae.sample(ae.moments(b["image"]), noise)
        assert torch.allclose(z_a, z_b, atol=5e-3 * float(z_b.std()) + 2e-3)
        assert z_a.mean() == pytest.approx(float(z_b.mean()), abs=1e-3)
        assert z_a.std() == pytest.approx(float(z_b.std()), rel=1e-3)


def test_every_field_comes_with_its_moments_and_is_mirrored_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text, boxes and maps too: a step from the cache has the fields of a step from the images, bit for bit."""
    cache, _ = make(tmp_path, monkeypatch, n=20, fields=FIELDS)
    device = torch.device("cpu")
    cached, direct = (Batches(d, 16, 16, 9, device).step(16)[0] for d in (cache, cache.dataset))
    assert set(cached) == {"moments", "position", *FIELDS} and set(direct) == {"image", "position", *FIELDS}
    for field in FIELDS:
        assert (
            torch.equal(torch.as_tensor(cached[field]), torch.as_tensor(direct[field]))
            if field != "caption"
            else (cached[field] == direct[field])
        )


def test_ranks_and_restarts_write_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "one", monkeypatch)
    make(tmp_path / "two", monkeypatch, ranks=2)
    (tmp_path / "two" / "moments-00001.npy").unlink()
    before = (tmp_path / "two" / "moments-00000.npy").stat().st_mtime_ns
    make(tmp_path / "two", monkeypatch)
    assert (tmp_path / "two" / "moments-00000.npy").stat().st_mtime_ns == before
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


def test_verify_accepts_its_own_and_refuses_another_autoencoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, ae = make(tmp_path, monkeypatch)
    assert verify(cache, ae.moments, torch.device("cpu")) < 2e-3 * 10
    with torch.no_grad():
        next(ae.network.parameters()).add_(0.05)
    with pytest.raises(DataError, match="stale or altered"):
        verify(cache, ae.moments, torch.device("cpu"))


def test_verify_sees_an_altered_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, ae = make(tmp_path, monkeypatch)
    block = np.load(tmp_path / "moments-00001.npy")
    block[0] += 1
    np.save(tmp_path / "moments-00001.npy", block)
    with pytest.raises(DataError, match="moments differ"):
        verify(LatentCache(tmp_path, cache.dataset), ae.moments, torch.device("cpu"))


def test_what_does_not_fit_or_is_not_finite_is_refused() -> None:
    with pytest.raises(DataError, match=r"latents\.dtype=float32"):
        latents._fits(np.full(3, 1e5, np.float32), "float16")
    with pytest.raises(DataError, match="not finite"):
        latents._fits(np.array([np.nan], np.float32), "float32")


def test_a_worker_gets_its_own_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, _ = make(tmp_path, monkeypatch)
    cache.__getitems__([0, 40])
    assert len(pickle.loads(pickle.dumps(cache))._blocks) == 0


def test_an_image_comes_with_its_latent_in_the_same_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For conditions that are made from the image: of mirrored examples image, map and moments are mirrored alike."""
    cache, ae = make(tmp_path, monkeypatch, "float32", fields=("segmentation",))
    batches = Batches(LatentCache(tmp_path, cache.dataset, image=True), 16, 16, 9, torch.device("cpu"))
    assert "image" not in Batches(cache, 16, 16, 9, torch.device("cpu")).step(0)[0]
    (batch,) = batches.step(0)
    with torch.no_grad():
        torch.testing.assert_close(batch["moments"], ae.moments(batch["image"]), atol=1e-4, rtol=1e-4)
    plain = np.stack([cache.dataset[i]["segmentation"] for i in (batches.order[n] for n in range(16))])
    flipped = [not np.array_equal(own, there) for own, there in zip(plain, batch["segmentation"].numpy(), strict=True)]
    assert 0 < sum(flipped) < 16
    for own, there, mirrored in zip(plain, batch["segmentation"].numpy(), flipped, strict=True):
        assert np.array_equal(own[:, ::-1] if mirrored else own, there)
