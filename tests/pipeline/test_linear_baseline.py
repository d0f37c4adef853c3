import pytest
import torch

from ldmlab.autoencoders.autoencoder import Autoencoder
from ldmlab.autoencoders.pca import PCANetwork
from ldmlab.autoencoders.regularisers.none import NoRegulariser
from ldmlab.data.batches import to_float
from ldmlab.metrics.reconstruction import ReconstructionError
from ldmlab.pipeline.linear_baseline import compared, linear_psnr, warnings


def pictures(n: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 8, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, scale_factor=4, mode="bilinear")
    return (smooth * 255).round().to(torch.uint8).permute(0, 2, 3, 1)


def test_it_is_the_psnr_of_the_linear_first_stage() -> None:
    train, val = pictures(30, 0), pictures(10, 1)
    got = linear_psnr(4, 3, lambda most: [to_float(train[:most])], lambda rows: val[rows], 10, 4, torch.device("cpu"))
    ae = Autoencoder(PCANetwork(4, 3, lambda c: c), NoRegulariser())
    ae.fit_linear(lambda: [to_float(train)])
    gauge = ReconstructionError()
    gauge.update(to_float(val), ae(to_float(val)).image_BCHW)
    assert got == pytest.approx(gauge.values()["psnr"].mean(), abs=1e-6)


def test_nothing_to_lose_is_no_bar() -> None:
    assert linear_psnr(1, 3, lambda most: [], lambda rows: pictures(1, 0), 1, 1, torch.device("cpu")) is None
    assert compared(30.0, None) == (None, None)
    assert warnings(compared(30.0, None), True, 1, 3) == []


def test_a_trained_stage_below_it_is_told_the_way_out() -> None:
    (text,) = warnings(compared(18.8, 20.8), True, 4, 3)
    assert text.startswith("below linear: it ends 2.00 dB below the 20.80 dB")
    assert "ae=pca_f4 ae.network.c=3" in text and "ae=kl_f4_quick" in text
    assert warnings(compared(20.9, 20.8), True, 4, 3) == [] == warnings(compared(18.8, 20.8), False, 4, 3)


def test_a_quantised_stage_below_it_is_told_the_bar_at_equal_bits() -> None:
    (text,) = warnings(compared(18.8, 20.8), True, 16, 8, quantises=True)
    assert "ae=pca_f16 ae.network.c=8 ae/regulariser=vq_quick" in text and "trained too little" not in text
