import pytest
import torch

from ldmlab.autoencoders.autoencoder import Autoencoder
from ldmlab.autoencoders.conv import ConvNetwork
from ldmlab.autoencoders.identity import IdentityNetwork
from ldmlab.autoencoders.regularisers.kl import KL
from ldmlab.autoencoders.regularisers.none import NoRegulariser
from ldmlab.autoencoders.regularisers.vq import VQ
from ldmlab.errors import ConfigError


def tiny(regulariser, c=2):
    torch.manual_seed(0)
    return Autoencoder(ConvNetwork(c, [1, 2], channels_in=regulariser.channels_in, width=8, blocks=1), regulariser)


def test_identity_is_an_autoencoder():
    ae = Autoencoder(IdentityNetwork(NoRegulariser().channels_in), NoRegulariser())
    image = torch.randn(2, 3, 8, 8)
    assert (ae.f, ae.c, ae.last_layer, ae.stochastic) == (1, 3, None, False)
    assert ae.latent_shape(17) == (3, 17, 17) and list(ae.parameters()) == []
    assert torch.equal(ae.encode(image), image) and torch.equal(ae.decode(image), image)
    assert torch.equal(ae(image).image_BCHW, image)


def test_identity_refuses_other_channels():
    with pytest.raises(ConfigError, match="ae/regulariser=none"):
        IdentityNetwork(KL().channels_in)
    with pytest.raises(ConfigError, match=r"ae\.network\.c=4"):
        IdentityNetwork(NoRegulariser().channels_in, c=4)


@pytest.mark.parametrize(("resolution", "nearest"), [(33, "32 or 34"), (1, "2")])
def test_latent_shape_names_the_nearest_valid_resolution(resolution, nearest):
    with pytest.raises(ConfigError, match=rf"data\.resolution={resolution} .*f=2; the nearest that is: {nearest}"):
        tiny(KL()).latent_shape(resolution)


def test_standardised_latent_round_trip_and_raw_training_path():
    ae = tiny(KL()).double()
    image, noise = torch.randn(2, 3, 8, 8).double(), torch.randn(2, 2, 4, 4).double()
    raw, decoded = ae.encode(image, noise), ae(image, noise).image_BCHW
    scale, shift = torch.tensor([2.0, 0.5]).view(2, 1, 1), torch.tensor([1.0, -3.0]).view(2, 1, 1)
    ae.set_scale(scale, shift)
    torch.testing.assert_close(ae.encode(image, noise), (raw - shift) * scale)
    torch.testing.assert_close(ae.decode(ae.encode(image, noise)), decoded)
    torch.testing.assert_close(ae(image, noise).image_BCHW, decoded)


def test_scale_is_saved_with_the_weights():
    ae, fresh = tiny(KL()), tiny(KL())
    ae.set_scale(torch.full((1, 1, 1), 5.0), -1.0)
    fresh.load_state_dict(ae.state_dict())
    assert fresh.scale.flatten().tolist() == [5.0, 5.0] and fresh.shift.flatten().tolist() == [-1.0, -1.0]


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_scale_must_be_usable(scale):
    with pytest.raises(ValueError, match="finite and positive"):
        tiny(KL()).set_scale(scale)


def test_vq_latent_is_not_quantised_and_decoding_quantises():
    ae = tiny(VQ(2, 16))
    ae.set_scale(3.0)
    image = torch.randn(1, 3, 8, 8)
    z = ae.encode(image)
    torch.testing.assert_close(z, 3 * ae.moments(image))
    quantised = ae.regulariser.project(z / 3) * 3
    assert not torch.allclose(z, quantised)
    torch.testing.assert_close(ae.decode(z), ae.decode(quantised))
