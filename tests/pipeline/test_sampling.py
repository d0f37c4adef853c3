"""Labels, seeds and parts of sampling."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ldmlab.conditioning.base import Cond
from ldmlab.conditioning.compose import Compose
from ldmlab.conditioning.source import labels_for
from ldmlab.diffusion.denoiser import Denoiser
from ldmlab.diffusion.objectives import Objective
from ldmlab.diffusion.schedules import Cosine
from ldmlab.guidance.base import Model
from ldmlab.guidance.stack import Guided
from ldmlab.pipeline import sampling
from ldmlab.pipeline.sampling import image_seed, sample_all
from ldmlab.pipeline.sheets import tiled
from ldmlab.samplers.heun import Heun
from ldmlab.store.ranks import Ranks


def test_label_modes() -> None:
    assert labels_for("uniform", None, 7, 3, None, 0).tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert labels_for("uniform", 2, 3, 3, None, 0).tolist() == [2, 2, 2]
    random = labels_for("random", None, 3000, 3, None, 0)
    assert np.bincount(random).min() > 900 and not np.array_equal(random, labels_for("random", None, 3000, 3, None, 1))
    from_data = labels_for("from_data", None, 3000, 3, np.array([0] * 9 + [2]), 0)
    assert set(from_data) == {0, 2} and 0.85 < (from_data == 0).mean() < 0.95


def test_seed_belongs_to_the_image() -> None:
    assert image_seed(0, 7) != image_seed(0, 8) != image_seed(1, 7)


@pytest.mark.parametrize("ranks,batch", [(1, 4), (2, 3), (3, 100)])
def test_parts_of_any_cut_make_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: int, batch: int
) -> None:
    monkeypatch.setattr(sampling, "PART", 5)
    drawn: list[int] = []

    def draw(indices: list[int]) -> torch.Tensor:
        drawn.extend(indices)
        return torch.tensor(indices, dtype=torch.uint8)[:, None, None, None].expand(-1, 2, 2, 3)

    for rank in reversed(range(ranks)):
        sample_all(draw, 17, tmp_path, batch, Ranks(rank, ranks))
    images = np.load(tmp_path / "images.npy")
    assert (
        images.dtype == np.uint8 and images[:, 0, 0, 0].tolist() == list(range(17)) and sorted(drawn) == list(range(17))
    )
    assert [p.name for p in tmp_path.iterdir()] == ["images.npy"]


def test_finished_parts_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "PART", 5)
    np.save(sampling.part_path(tmp_path, 5), np.full((5, 2, 2, 3), 99, np.uint8))
    draw = lambda indices: torch.zeros(len(indices), 2, 2, 3, dtype=torch.uint8)  # noqa: E731
    sample_all(draw, 12, tmp_path, 5, Ranks())
    assert np.load(tmp_path / "images.npy")[:, 0, 0, 0].tolist() == [0] * 5 + [99] * 5 + [0] * 2


class Counting(Compose):
    """A conditioner of labels that writes down what it encodes."""

    needs = ("label",)

    def __init__(self) -> None:
        super().__init__([])
        self.needs = ("label",)
        self.encoded: list[list[int]] = []

    def forward(self, batch: dict[str, Any]) -> Cond:
        self.encoded.append(batch["label"].tolist())
        return Cond(vector_BD=torch.zeros(len(batch["label"]), 1))

    def null(self, batch_size: int, size: tuple[int, int], device: Any) -> Cond:
        return Cond(vector_BD=torch.ones(batch_size, 1, device=device))


class Seeing(torch.nn.Module):
    """A network that writes down the condition of each call."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def forward(self, z: torch.Tensor, t_B: torch.Tensor, cond: Any) -> torch.Tensor:
        self.seen.append(cond)
        return z

    def prepared(self, cond: Any) -> Any:
        return cond


def test_a_condition_is_encoded_once_per_draw_and_not_once_per_step() -> None:
    network, conditioner = Seeing(), Counting()
    guided = Guided(Model(Denoiser(network, conditioner), Objective("eps", Cosine())))
    bound = guided.bind({"label": torch.tensor([7, 8])}, 2, (4, 4), "cpu")
    images = sampling.draw(
        Heun(5), bound.denoise, Cosine(), lambda z: z, bound.cond, [11, 12], (3, 4, 4), torch.device("cpu")
    )
    assert conditioner.encoded == [[7, 8]] and len(network.seen) == 9 and len({id(cond) for cond in network.seen}) == 1
    assert images.shape == (2, 4, 4, 3) and images.dtype == torch.uint8


def test_contact_sheet_places_images() -> None:
    images = np.stack([np.full((2, 2, 3), 10 * i, np.uint8) for i in range(5)])
    sheet = tiled(images, columns=3, scale=2, gap=1)
    assert sheet.shape == (9, 14, 3)
    assert sheet[0, 5].tolist() == [10] * 3 and sheet[5, 0].tolist() == [30] * 3 and sheet[5, 10].tolist() == [255] * 3
