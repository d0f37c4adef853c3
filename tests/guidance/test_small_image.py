"""Guidance by each sample's own small image: beside the guidance by a given picture, and towards what it shall show."""

import torch
from torch import Tensor

from ldmlab.data.degradations import DEGRADATIONS
from ldmlab.diffusion.objectives import Prediction
from ldmlab.diffusion.schedules import Cosine
from ldmlab.guidance.base import Binding
from ldmlab.guidance.image import image_guided, resembles
from ldmlab.guidance.observations import Downsample
from ldmlab.guidance.small_image import SmallImageGuidance

SCHEDULE = Cosine()
IMAGE = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
T_B = torch.tensor([200, 600])


def plain(zt: Tensor, t_B: Tensor, cond: object) -> Prediction:
    """z_0 = z_t / 2, whatever eps then is."""
    alpha, sigma = (f(t_B, zt.dtype)[:, None, None, None] for f in (SCHEDULE.alpha, SCHEDULE.sigma))
    return Prediction(zt / 2, (zt - alpha * zt / 2) / sigma)


def guided(kind: SmallImageGuidance) -> SmallImageGuidance:
    batch = {"image": IMAGE, "position": torch.arange(2)}
    return kind.with_values(decode=lambda z: z).bind(Binding(batch, None, None, SCHEDULE))


def test_each_image_is_pushed_towards_its_own_small_one() -> None:
    zt = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    found = guided(SmallImageGuidance(scale=0.3, factor=4)).wrap(plain)(zt, T_B, None)
    small = DEGRADATIONS["bicubic"](IMAGE, torch.arange(2), 4)
    for i in range(2):  # one picture for all, given by hand, is known to be right (test_guidance.py)
        alone = image_guided(plain, resembles(small[i : i + 1], lambda z: z, Downsample(4)), 0.3, SCHEDULE)
        wanted = alone(zt[i : i + 1], T_B[i : i + 1], None)
        torch.testing.assert_close(found.z0[i : i + 1], wanted.z0)

    def miss(z0: Tensor) -> Tensor:
        return (Downsample(4)(z0) - small).square().sum(dim=(1, 2, 3))

    assert (miss(found.z0) < miss(plain(zt, T_B, None).z0)).all()


def test_a_distance_takes_the_place_of_squares() -> None:
    """log p = -d(y, T(D(z_0))): with half the sum of squares for d, the guidance by squares."""
    zt = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))

    def half(one: Tensor, other: Tensor) -> Tensor:
        return (one - other).square().flatten(1).sum(1) / 2

    by_distance = guided(SmallImageGuidance(scale=0.3).with_values(perceptual=half)).wrap(plain)
    torch.testing.assert_close(
        by_distance(zt, T_B, None).z0, guided(SmallImageGuidance(scale=0.3)).wrap(plain)(zt, T_B, None).z0
    )


def test_nothing_is_pushed_outside_its_interval() -> None:
    zt = torch.randn(2, 3, 16, 16)
    found = guided(SmallImageGuidance(scale=0.3, interval=[1e6, 2e6])).wrap(plain)(zt, T_B, None)
    assert torch.equal(found.z0, plain(zt, T_B, None).z0)
