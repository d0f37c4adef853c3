"""Our network and diffusers' compute the same from the same weights, whichever side the weights come from."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ldmlab import build
from ldmlab.autoencoders.autoencoder import Autoencoder
from ldmlab.config.compose import load
from ldmlab.interop import compvis, weights
from ldmlab.pipeline import weights_first_stage

diffusers = pytest.importorskip("diffusers", reason="the oracle of these tests; pip install -e .[dev]")

TOLERANCE = 1e-5  # relative to the largest value


@pytest.fixture(autouse=True)
def leave_no_gigabytes(tmp_path: Path) -> Iterator[None]:
    """pytest keeps the folders of three calls; these hold whole networks."""
    yield
    shutil.rmtree(tmp_path)


def randomise(module: nn.Module, seed: int) -> None:
    """Every tensor distinct: fresh normalisations are all one and zero, and would hide a swap."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            if "norm" in name:
                p.copy_(torch.rand(p.shape, generator=generator) * 0.4 + (0.8 if name.endswith("weight") else -0.2))
            elif p.ndim == 1:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.1)
            else:
                p.copy_(
                    torch.randn(p.shape, generator=generator) / (p[0].numel() if "embedding" not in name else 1) ** 0.5
                )


def ours(*words: str, seed: int = 0) -> Autoencoder:
    with build.shapes_only():
        ae = build.autoencoder(load(list(words)).cfg)
    ae.to_empty(device="cpu").eval().requires_grad_(False)
    randomise(ae, seed)
    ae.set_scale(0.5, 0.0)
    return ae


def exported(ae: Autoencoder, folder: Path) -> Any:
    weights.write(folder, weights.as_diffusers(ae.state_dict(), weights_first_stage.groups_of(ae), 256))
    cls = diffusers.VQModel if hasattr(ae.regulariser, "embedding") else diffusers.AutoencoderKL
    model, info = cls.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval().requires_grad_(False)


def close(a: Tensor, b: Tensor) -> None:
    assert a.shape == b.shape and float((a - b).abs().max() / b.abs().max()) <= TOLERANCE


def assert_same(ae: Autoencoder, model: Any, size: int) -> None:
    """Encode, quantise, decode. Rectangular images, so that a transposed axis would show."""
    image = torch.rand(1, 3, size, 2 * size, generator=torch.Generator().manual_seed(1)) * 2 - 1
    moments = ae.moments(image)
    if hasattr(model, "quantize"):
        close(moments, model.encode(image).latents)
        z = moments
        quantised = model.quantize(z)[0]
        assert torch.equal(ae.regulariser.project(z), ae.regulariser.lookup(ae.regulariser.indices(z)))
        close(ae.regulariser.project(z), quantised)
    else:
        theirs = model.encode(image).latent_dist
        close(ae.regulariser.posterior(moments).mean_BCHW, theirs.mean)
        close(ae.regulariser.posterior(moments).variance_BCHW, theirs.var)
        z = theirs.mean
    close(ae.decode((z - ae.shift) * ae.scale), model.decode(z).sample)
    assert model.config.scaling_factor == 0.5


@pytest.mark.slow
@pytest.mark.parametrize("option", ["kl_f8", "vq_f4"])
def test_true_size_both_directions(option: str, tmp_path: Path) -> None:
    """83.7 and 55.3 M parameters: ours → a folder → diffusers, and diffusers → a folder → ours."""
    ae = ours(f"ae={option}")
    model = exported(ae, tmp_path / "out")
    assert_same(ae, model, 32)
    randomise(model, 1)
    model.save_pretrained(tmp_path / "back")
    cfg = load([f"ae={option}", f"ae.weights={tmp_path / 'back'}", "ae.latent_scale.mode=stored"]).cfg
    with build.shapes_only():
        weights_first_stage.check(cfg, {"ae": option}, build.autoencoder(cfg))
    assert weights_first_stage.install(cfg, ae)["layout"] == "diffusers"
    assert_same(ae, model, 32)


NARROWER = ["kl_f2", "kl_f4", "kl_f16", "kl_f32", "vq_f8", "vq_f16"]


@pytest.mark.parametrize("option", NARROWER)
def test_every_layout_with_one_block_a_level(option: str, tmp_path: Path) -> None:
    """Attention at levels (kl_f16, kl_f32, vq_f8, vq_f16) is AttnDownEncoderBlock2D and AttnUpDecoderBlock2D there."""
    ae = ours(f"ae={option}", "ae.network.blocks=1")
    assert_same(ae, exported(ae, tmp_path), 32)


def test_folder_goes_through_the_store_unchanged(tmp_path: Path) -> None:
    """A diffusers folder → ae.weights → the store → to=diffusers: the same tensors and the same scale; nothing trained."""
    from ldmlab.pipeline.context import Context
    from ldmlab.pipeline.export import export_first_stage as export
    from ldmlab.pipeline.first_stage import FirstStage
    from ldmlab.pipeline.launch import make_accelerator
    from ldmlab.pipeline.run import prepare

    shape = ["ae=vq_f4", "ae.network.blocks=1", "ae.network.multipliers=[1,1,2]", "ae.regulariser.codes=64"]
    model = exported(ours(*shape), tmp_path / "theirs")
    words = [*shape, "data.resolution=16", "data.train_images=8", "data.val_images=8", "ldm.network.multipliers=[1,2]",
             f"ae.weights={tmp_path / 'theirs'}", "ae.latent_scale.mode=stored", f"store={tmp_path / 'store'}"]  # fmt: skip
    composed = load(words)
    plan = prepare(composed)
    made = plan.stage(FirstStage).load(Context(composed.cfg, plan, make_accelerator("cpu")))
    assert made.scale.flatten().tolist() == [0.5] * 3
    export(composed, "diffusers", tmp_path / "again", "")
    again = diffusers.VQModel.from_pretrained(tmp_path / "again")
    assert again.state_dict().keys() == model.state_dict().keys() and again.config.scaling_factor == 0.5
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))


def test_attention_free(tmp_path: Path) -> None:
    ae = ours("ae=vq_f4", "ae.network.middle_attention=false", "ae.network.blocks=1")
    assert_same(ae, exported(ae, tmp_path), 16)


def test_name_table_is_that_of_diffusers_own_converter() -> None:
    """Every tensor distinct, so that q for k or one level for another would show."""
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    from ldmlab.interop.diffusers import from_official

    official = compvis.from_ours(ours("ae=kl_f8", "ae.network.width=16").state_dict())
    theirs = convert_ldm_vae_checkpoint(dict(official), {"down_block_types": [""] * 4, "up_block_types": [""] * 4})
    mine = from_official(official)
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)
