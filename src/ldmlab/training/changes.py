"""Changes made on purpose that a network learns to name, so that its features see them: contrast, brightness, colour, blur, noise.

The changes are those of `metrics.corruptions`, whose texture, warp and broken images are never used here: they stay a test.

Shape letters: B batch, C channels, H W space.
"""

import torch
from torch import Tensor

from ldmlab.metrics.corruptions import Batch, brightness, contrast, saturation, smooth
from ldmlab.randomness import Draws

HOW_OFTEN = 0.3  # of the images have each change
STOPS, LIGHT, SIGMA, NOISE = (
    1.0,
    0.4,
    2.0,
    0.4,
)  # at most: contrast × 2^±1, brightness ±, pixels of blur, deviation of noise


def changed(image_BCHW: Tensor, position_B: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    """Float images in [-1, 1] as drawn by position, and how each was changed: [B, 5], 0 for not at all, about 1 at most.

    In order: log2 of the contrast's factor, brightness, colour taken away, sigma of blur, deviation of noise.
    """
    u_B10 = draws.rand("classifier change", position_B, (10,), image_BCHW.device)
    none_5 = (torch.arange(5, device=u_B10.device) < 2).float() / 2  # contrast and brightness lie in the middle
    u_B5 = torch.where(u_B10[:, 5:] < HOW_OFTEN, u_B10[:, :5], none_5)
    target_B5 = u_B5.clone()
    target_B5[:, :2] = 2 * u_B5[:, :2] - 1
    target_B5[:, 4] = u_B5[:, 4] ** 2  # little noise is the harder question
    stops, light, grey, soft, grain = target_B5[:, :, None, None, None].unbind(1)
    x_BCHW = smooth(image_BCHW, SIGMA * soft, largest=SIGMA)
    for change, dose in ((saturation, 1 - grey), (contrast, 2 ** (STOPS * stops)), (brightness, LIGHT * light)):
        x_BCHW = change(Batch(x_BCHW, [], x_BCHW), dose)
    noise_BCHW = draws.randn("classifier noise", position_B, x_BCHW.shape[1:], x_BCHW.device)
    return (x_BCHW + NOISE * grain * noise_BCHW).clamp(-1, 1), target_B5
