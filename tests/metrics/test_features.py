"""Extractors: what they answer, what they refuse, and that neither batch size nor layout changes a feature."""

import re
import urllib.error

import numpy as np
import pytest
import torch

from ldmlab.data.shapes import DECLARED
from ldmlab.errors import ConfigError, DataError, WeightsError
from ldmlab.metrics import features
from ldmlab.metrics.classifier import Classifier
from ldmlab.metrics.features import Extractor, FeatureSet, Inception, SqueezeNet, extract, hash_of


def pictures(n, side=32, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, side, side), generator=g, dtype=torch.uint8)


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    """Random weights of the right shapes, scaled so that activations neither vanish nor explode."""
    from torch_fidelity.feature_extractor_inceptionv3 import BasicConv2d, FeatureExtractorInceptionV3

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    original = FeatureExtractorInceptionV3.load_state_dict
    FeatureExtractorInceptionV3.load_state_dict = lambda self, state: None  # the constructor insists on a file
    try:
        torch.save({}, path)
        net = FeatureExtractorInceptionV3("random", ["2048"], path)
    finally:
        FeatureExtractorInceptionV3.load_state_dict = original
    for module in net.modules():
        if isinstance(module, BasicConv2d):
            torch.nn.init.kaiming_normal_(module.conv.weight)
    torch.save(net.state_dict(), path)
    return path


@pytest.fixture
def squeezenet(shared_data):
    return SqueezeNet(str(shared_data / "weights" / "squeezenet1_1_imagenet.pth"))


def test_inception_is_torch_fidelitys(inception_file):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    ours = Inception(str(inception_file))
    theirs = FeatureExtractorInceptionV3("x", ["2048", "logits_unbiased"], str(inception_file))
    x = pictures(2)
    (f, logits), (f0, logits0) = ours(x), theirs(x)
    assert f.shape == (2, 2048) and logits.shape == (2, 1008)
    assert (f - f0).norm() < 1e-5 * f0.norm() and (logits - logits0).norm() < 1e-5 * logits0.norm()
    assert isinstance(ours, Extractor) and not ours.train().training
    assert not any(p.requires_grad for p in ours.parameters())


def test_inception_features_do_not_depend_on_the_batch(inception_file):
    ours, x = Inception(str(inception_file)), pictures(6)
    one = extract(x.split(1), ours, "cpu")
    many = extract(x.split(6), ours, "cpu")
    assert np.linalg.norm(one.features - many.features) < 1e-5 * np.linalg.norm(many.features)


def test_inception_offline_says_which_file_to_put_where(tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    with pytest.raises(WeightsError) as caught:
        Inception()
    said = str(caught.value)
    assert features.INCEPTION_FILE in said and str(tmp_path / "checkpoints") in said
    assert "eval.extractor.weights=" in said and "no route" in said


def test_inception_takes_the_file_from_torch_hubs_folder(inception_file, tmp_path, monkeypatch):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / features.INCEPTION_FILE).write_bytes(inception_file.read_bytes())
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert Inception().fingerprint() == Inception(str(inception_file)).fingerprint()


def test_bad_weight_files(tmp_path):
    with pytest.raises(WeightsError, match=r"eval\.extractor\.weights=.*nowhere\.pth: no such file"):
        Inception(str(tmp_path / "nowhere.pth"))
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(WeightsError, match=r"text\.pth: not a torch state dict"):
        Inception(str(tmp_path / "text.pth"))
    torch.save({"conv": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="does not fit torch-fidelity's InceptionV3"):
        Inception(str(tmp_path / "other.pth"))
    with pytest.raises(WeightsError, match=r"other\.pth: is not a state dict of torchvision's squeezenet1_1"):
        SqueezeNet(str(tmp_path / "other.pth"))
    with pytest.raises(WeightsError, match=r"eval\.extractor\.weights is not set"):
        SqueezeNet()


def test_a_weights_file_cannot_run_code(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"fc.weight": Trap()}, tmp_path / "trap.pth")
    for make in (Inception, SqueezeNet):
        with pytest.raises(WeightsError):
            make(str(tmp_path / "trap.pth"))
    assert not (tmp_path / "ran").exists()


def test_squeezenet_is_torchvisions_on_photographs(squeezenet, shared_data):
    """Real weights on real photographs: the same answers as torchvision's network behind torchvision's own transforms."""
    from PIL import Image

    files = sorted((shared_data / "photos").glob("kodim*.png"))[:6]
    stack = []
    for file in files:
        image = Image.open(file).convert("RGB")
        side = min(image.size)
        image = image.crop((0, 0, side, side)).resize((256, 256), Image.Resampling.BOX)
        stack.append(torch.from_numpy(np.array(image)).permute(2, 0, 1))
    found = extract([torch.stack(stack)], squeezenet, "cpu")
    assert found.features.shape == (len(files), 512) and found.logits is not None
    assert found.logits.shape == (len(files), 1000)
    import torchvision
    from torchvision.transforms.v2 import functional

    oracle = torchvision.models.squeezenet1_1(weights=None)
    oracle.load_state_dict(torch.load(shared_data / "weights" / "squeezenet1_1_imagenet.pth", weights_only=True))
    x = functional.resize(torch.stack(stack).float() / 255, [224, 224], antialias=True)
    x = functional.normalize(x, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    with torch.no_grad():
        np.testing.assert_allclose(found.logits, oracle.eval()(x), rtol=1e-3, atol=2e-3)


def test_squeezenet_features_do_not_depend_on_the_batch(squeezenet):
    x = pictures(8, 48)
    one, many = (extract(x.split(n), squeezenet, "cpu") for n in (1, 8))
    assert np.abs(one.features - many.features).max() < 1e-4 * np.abs(many.features).max()


def test_squeezenet_fingerprint_sees_preprocessing(squeezenet, shared_data):
    other = SqueezeNet(str(shared_data / "weights" / "squeezenet1_1_imagenet.pth"), resize=128)
    assert other.fingerprint() != squeezenet.fingerprint()
    assert re.fullmatch("[0-9a-f]{64}", other.fingerprint())


def test_fingerprint_sees_every_weight():
    torch.manual_seed(0)
    net = Classifier(tuple(DECLARED.values()), width=16)
    before = net.fingerprint()
    assert before == net.fingerprint() != hash_of(net, "other preprocessing")
    with torch.no_grad():
        net.stem.weight[0, 0, 0, 0] += 1e-6
    assert net.fingerprint() != before


def test_extract_in_any_batches_equals_one_batch():
    torch.manual_seed(0)
    net, x = Classifier(tuple(DECLARED.values()), width=16).eval(), pictures(33)
    one, many, uneven = (extract(x.split(n), net, "cpu") for n in (1, 33, 7))
    for found in (one, uneven):
        np.testing.assert_allclose(found.features, many.features, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.logits, many.logits, rtol=1e-4, atol=1e-5)
    assert many.features.dtype == np.float32 and len(many) == 33


def test_extract_refuses():
    net = Classifier(tuple(DECLARED.values()), width=16).eval()
    with pytest.raises(DataError, match=r"eval\.reference\.images: there is no image"):
        extract([], net, "cpu", "eval.reference.images")
    with pytest.raises(ValueError, match="training mode"):
        extract([pictures(1)], net.train(), "cpu")
    with torch.no_grad():
        net.stem.bias[0] = float("nan")
    with pytest.raises(DataError, match="image 0 has features that are not finite"):
        extract([pictures(2)], net.eval(), "cpu")


def test_images_too_small_or_of_the_wrong_type(squeezenet):
    with pytest.raises(ConfigError, match=r"at least 16 pixels.*data\.resolution=8"):
        squeezenet(pictures(1, 8))
    with pytest.raises(ValueError, match="uint8"):
        squeezenet(torch.zeros(1, 3, 32, 32))


def test_feature_sets():
    a, b = FeatureSet(np.ones((2, 3)), np.zeros((2, 5))), FeatureSet(np.zeros((1, 3)), np.zeros((1, 5)))
    whole = FeatureSet.concatenate([a, b])
    assert len(whole) == 3 and whole.logits.shape == (3, 5)
    assert whole.select(slice(1, 3)).features[:, 0].tolist() == [1, 0]
    with pytest.raises(ValueError, match="some have none"):
        FeatureSet.concatenate([a, FeatureSet(np.zeros((1, 3)))])
    with pytest.raises(ValueError, match="2 feature rows but 1 logit rows"):
        FeatureSet(np.ones((2, 3)), np.zeros((1, 5)))
