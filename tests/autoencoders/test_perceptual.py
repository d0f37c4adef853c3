from urllib.error import URLError

import numpy as np
import pytest
import torch
from torch import nn

from ldmlab.autoencoders import perceptual
from ldmlab.autoencoders.perceptual import LPIPS, ShapesDistance, SqueezeNetDistance
from ldmlab.errors import WeightsError


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory):
    from torchvision.models import vgg16

    torch.manual_seed(0)
    with torch.device("meta"):
        shapes = {n: v.shape for n, v in vgg16(weights=None).state_dict().items() if n.startswith("features.")}
    path = tmp_path_factory.mktemp("weights") / "vgg16.pth"
    torch.save({n: torch.randn(s) / max(1, np.prod(s[1:])) ** 0.5 for n, s in shapes.items()}, path)
    return str(path)


def test_lpips_equals_torchmetrics(vgg_file):
    from torchmetrics.functional.image.lpips import _LPIPS

    theirs = _LPIPS(pretrained=True, net="vgg", pnet_rand=True).eval()
    state = {n.removeprefix("features."): v for n, v in torch.load(vgg_file, weights_only=True).items()}
    for block in (theirs.net.slice1, theirs.net.slice2, theirs.net.slice3, theirs.net.slice4, theirs.net.slice5):
        block.load_state_dict({n: state[n] for n in block.state_dict()})
    ours = LPIPS(vgg_file)
    x, y = torch.rand(2, 2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(ours(x, y), theirs(x, y).flatten(), rtol=1e-4, atol=1e-6)
        assert ours(x, x).abs().max() == 0


def test_frozen_and_in_evaluation_mode_for_good(vgg_file):
    distance = LPIPS(vgg_file)
    nn.Sequential(distance).train()
    assert not any(m.training for m in distance.modules()) and not any(p.requires_grad for p in distance.parameters())
    recon = (torch.rand(1, 3, 32, 32) * 2 - 1).requires_grad_()
    distance(torch.zeros(1, 3, 32, 32), recon).sum().backward()
    assert recon.grad.abs().max() > 0


def test_lpips_offline_says_which_file_to_put_where(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def offline(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(WeightsError, match=r"vgg16-397923af\.pth.*ae\.loss\.perceptual\.weights") as error:
        LPIPS()
    assert str(tmp_path / "checkpoints" / "vgg16-397923af.pth") in str(error.value)


def test_wrong_files_are_named(tmp_path):
    with pytest.raises(WeightsError, match="no such file"):
        SqueezeNetDistance(str(tmp_path / "none.pth"))
    (tmp_path / "text.pth").write_text("not weights")
    with pytest.raises(WeightsError, match="cannot be read"):
        SqueezeNetDistance(str(tmp_path / "text.pth"))
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="not a state dict of torchvision's SqueezeNet"):
        SqueezeNetDistance(str(tmp_path / "other.pth"))


def test_squeezenet_distance_orders_photographs(shared_data):
    from PIL import Image, ImageFilter

    distance = SqueezeNetDistance(str(shared_data / "weights" / "squeezenet1_1_imagenet.pth"))
    photo = Image.open(sorted((shared_data / "photos").glob("*.png"))[0]).convert("RGB").resize((128, 128))

    def tensor(image):
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1

    x = tensor(photo)
    blurred = [distance(x, tensor(photo.filter(ImageFilter.GaussianBlur(r)))).item() for r in (0.5, 1, 2, 4)]
    assert blurred == sorted(blurred) and 0 < blurred[0] < blurred[-1] < 14
    assert distance(x, x).item() == 0


class TwoMaps(nn.Module):
    def feature_maps(self, image):
        return [image, image[:, :1, ::2, ::2]]


def test_shapes_distance_closed_form():
    x, y = torch.rand(2, 2, 3, 4, 4, dtype=torch.float64) + 0.1
    unit = nn.functional.normalize
    first = (unit(x, dim=1) - unit(y, dim=1)).square().sum(1).mean((1, 2))
    torch.testing.assert_close(
        ShapesDistance(TwoMaps())(x, y), first
    )  # one positive channel of unit length: no difference


def test_taps_are_the_named_layers():
    layers = nn.Sequential(*[nn.Identity() for _ in range(5)])
    assert len(perceptual.tapped(layers, torch.zeros(1), (0, 3))) == 2
