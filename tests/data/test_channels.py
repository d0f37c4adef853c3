"""Grey, four-channel and 16-bit pictures: read, packed, and through a whole run; what needs RGB says so."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from option_words import replacing
from PIL import Image

from ldmlab.autoencoders.discriminator import PatchGAN
from ldmlab.config.compose import load
from ldmlab.data.encoding import Encoding
from ldmlab.data.folder import Folder, FolderLayout
from ldmlab.data.prepare import pack
from ldmlab.data.shards import Shards
from ldmlab.errors import ConfigError
from ldmlab.metrics.reconstruction import highest_psnr
from ldmlab.pipeline.run import prepare
from sample import only_samples, own_words
from sample import sample as draw
from train import train


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Of one kind each: 8-bit grey, 16-bit grey, RGB, RGB with opacity; the same ramp of grey in all of them."""
    root = tmp_path / "in"
    for n in range(24):
        ramp_HW = (np.linspace(0, 200, 16 * 16).reshape(16, 16) + 2 * n).astype(np.uint8)
        opacity_HW = np.where(np.arange(16) < 8, 255, 40 + n).astype(np.uint8)[None].repeat(16, 0)
        kinds = (
            ramp_HW,
            ramp_HW.astype(np.uint16) * 257,
            np.stack([ramp_HW] * 3, axis=2),
            np.stack([ramp_HW] * 3 + [opacity_HW], axis=2),
        )
        (root / "ab"[n % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(kinds[n % 4]).save(root / "ab"[n % 2] / f"{n:02d}.png")
    return root


def number(path: str) -> int:
    return int(Path(path).stem)


def test_every_kind_of_picture_is_read_in_as_many_channels(pictures):
    for channels in (1, 3, 4):
        data = Folder(str(pictures), 16, val_fraction=0.0, channels=channels)  # type: ignore[arg-type]
        for path, sample in zip(data._paths, data, strict=True):  # type: ignore[call-overload]
            n = number(path)
            ramp_HW = (np.linspace(0, 200, 256).reshape(16, 16) + 2 * n).astype(np.uint8)
            assert sample["image"].shape == (16, 16, channels) and sample["image"].dtype == np.uint8
            opaque = np.s_[:, : 8 if n % 4 == 3 else 16]  # of the rest, 1 and 3 channels see the white behind
            assert np.array_equal(sample["image"][..., 0][opaque], ramp_HW[opaque])
            if channels == 4:
                assert np.array_equal(sample["image"][..., :3], np.stack([ramp_HW] * 3, axis=2))
                assert np.unique(sample["image"][..., 3]).tolist() == ([40 + n, 255] if n % 4 == 3 else [255])


def test_channels_go_into_shards_and_are_another_data_set(pictures, tmp_path):
    ids = {c: Folder(str(pictures), 16, val_fraction=0.0, channels=c).fingerprint() for c in (1, 3, 4)}  # type: ignore[arg-type]
    assert len(set(ids.values())) == 3 and ids[3] == Folder(str(pictures), 16, val_fraction=0.0).fingerprint()
    for channels in (1, 4):
        out = tmp_path / f"out{channels}"
        pack(FolderLayout(str(pictures), 16, val_fraction=0.0).listing(), out, 16, Encoding("png", 95, channels))
        images = [
            {sample["image"].tobytes() for sample in data}
            for data in (
                Shards(str(out), 16, channels=channels),  # type: ignore[arg-type]
                Folder(str(pictures), 16, val_fraction=0.0, channels=channels),  # type: ignore[arg-type]
            )
        ]
        assert images[0] == images[1]
    with pytest.raises(ConfigError, match=r"prepare.format=jpg cannot keep the fourth channel"):
        Encoding("jpg", 95, 4)


def words(root: Path, store: Path, channels: int, *more: str) -> list[str]:
    return [
        "debug=tiny", "data=folder", f"data.root={root}", "data.resolution=16", f"data.channels={channels}", "data.val_fraction=0.3",
        "ldm=unet_study", "ldm.network.width=8", "ldm.network.norm_group_channels=4", "eval=classifier",
        "cond=class_vector", f"store={store}", "runtime.threads=1", "ldm.fit.images=16", "ldm.fit.batch_size=8", "ldm.fit.warmup=0",
        "ldm.fit.cooldown=0", "sampler.steps=2", "eval.extractor.width=8", "eval.extractor_fit.images=16",
        "eval.extractor_fit.batch_size=8",
        "eval.metrics=[fid]", "eval.samples=6", "eval.reference.images=8", "eval.reconstructions=4", "eval.batch_size=4", *more,
    ]  # fmt: skip


KL = [
    "ae=kl_f4_small",
    "ae/loss/discriminator=patchgan_2",
    "ae.network.width=32",
    "ae.fit.images=8",
    "ae.fit.batch_size=4",
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("channels", "bits", "more"), [(1, 8, KL), (1, 16, KL), (4, 16, ["ae=identity", "ae.network.c=4"])]
)
def test_a_whole_run(pictures, tmp_path, channels, bits, more, capsys):
    """With what is printed and shown at its end."""
    composed = load(words(pictures, tmp_path / "store", channels, f"data.bits={bits}", *more))
    train(composed, "python src/train.py")
    assert "FID" in capsys.readouterr().out
    plan = prepare(composed)
    samples = np.load(plan.store.folder(plan.address("samples")) / "images.npy")
    assert samples.shape == (6, 16, 16, channels)
    assert Image.open(plan.store.folder(plan.address("samples")) / "grid.png").mode == "RGB"
    scores = json.loads((plan.store.folder(plan.address("reconstructions")) / "scores.json").read_text())
    assert scores["card"]["rounding"] == f"{bits} bit, nearest"
    assert channels == 1 or scores["psnr"]["value"] == pytest.approx(
        highest_psnr(4, 16, 16, bits=16)
    )  # nothing is lost
    drawn = only_samples(
        load(words(pictures, tmp_path / "store", channels, f"data.bits={bits}", f"out={tmp_path / 'out'}", *more)), n=2
    )
    draw(drawn, "python src/sample.py")
    assert {Image.open(file).mode for file in (tmp_path / "out").glob("0*.png")} == {{1: "L", 4: "RGBA"}[channels]}
    colours = next(path for path in pictures.rglob("*.png") if Image.open(path).mode == "RGB")
    guided = ["guidance=image", f"guidance.image.file={colours}", "guidance.image.scale=0.05"]
    begun = [f"image={colours}", "strength=0.5", "seeds=1", f"out={tmp_path / 'begun'}"]
    change, rest = own_words(words(pictures, tmp_path / "store", channels, f"data.bits={bits}", *more, *guided, *begun))
    draw(change(load(rest)), "python src/sample.py")
    (file,) = (tmp_path / "begun").glob("0*.png")
    assert Image.open(file).mode == {1: "L", 4: "RGBA"}[channels]


@pytest.mark.parametrize("ae", ["pca_f4", "kl_f4_quick", "kl_f4_small"])
def test_first_stages_of_grey_pictures(pictures, tmp_path, ae):
    more = ["ae.network.c=3"] if ae == "pca_f4" else []
    plan = prepare(load(words(pictures, tmp_path / "store", 1, f"ae={ae}", "until=autoencoder", *more)))
    network = plan.resolved.autoencoder.network
    assert network.image_channels == 1
    z_BCHW = plan.resolved.autoencoder.moments(torch.empty(2, 1, 16, 16, device="meta"))
    assert z_BCHW.shape[2:] == (4, 4)


def test_what_needs_rgb_says_so_before_anything_starts(pictures, tmp_path):
    def refused(pattern: str, *more: str) -> None:
        with pytest.raises(ConfigError, match=pattern):
            prepare(load(replacing(words(pictures, tmp_path / "store", 1), more)))

    refused(
        r"ae.loss.perceptual looks through a network of pictures with 3 channels, and data.channels=1",
        "ae=kl_f4",
        "ae/loss/perceptual=lpips",
        "ae/loss/discriminator=none",
    )
    refused(
        r"eval=shapes takes its features from pictures with 3 channels", "ae=pca_f4", "ae.network.c=3", "eval=shapes"
    )
    refused(
        r"guidance=clip looks at pictures with 3 channels, and data.channels=1",
        "ae=pca_f4",
        "ae.network.c=3",
        "guidance=clip",
    )
    refused(r"ae.network.c=3: .*so c is 1. Set ae.network.c=1", "ae=identity")
    refused(r"a 4x4 patch has 16 values", "ae=pca_f4", "ae.network.c=17")
    assert PatchGAN(2, 8, 1).main[0].weight.shape[1] == 1
