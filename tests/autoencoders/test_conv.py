import re

import pytest
import torch

from ldmlab.autoencoders.autoencoder import Autoencoder
from ldmlab.autoencoders.conv import Attention, ConvNetwork
from ldmlab.autoencoders.regularisers.kl import KL
from ldmlab.autoencoders.regularisers.vq import VQ
from ldmlab.errors import ConfigError


def kl(**options):
    return Autoencoder(ConvNetwork(channels_in=KL().channels_in, **options), KL())


# millions, counted from the official configs apart from this code (docs/paper.md#first-stage-networks), loss not included
# Without attention at the levels f=16 and f=32 would have 64.35 and 93.36.
OFFICIAL = {
    "kl-f4": (55.31, None, dict(c=3, multipliers=[1, 2, 4])),
    "kl-f8": (83.65, None, dict(c=4, multipliers=[1, 2, 4, 4])),
    "kl-f16": (69.61, None, dict(c=16, multipliers=[1, 1, 2, 2, 4], attention_factors=[16])),
    "kl-f32": (103.88, None, dict(c=64, multipliers=[1, 1, 2, 2, 4, 4], attention_factors=[16, 32])),
    "kl-f16 bare": (64.35, None, dict(c=16, multipliers=[1, 1, 2, 2, 4])),
    "kl-f32 bare": (93.36, None, dict(c=64, multipliers=[1, 1, 2, 2, 4, 4])),
    "vq-f4": (55.32, 8192, dict(c=3, multipliers=[1, 2, 4])),
    "vq-f4-noattn": (53.22, 8192, dict(c=3, multipliers=[1, 2, 4], middle_attention=False)),
    "vq-f8": (67.72, 16384, dict(c=4, multipliers=[1, 2, 2, 4], attention_factors=[8])),
    "vq-f8-n256": (67.65, 256, dict(c=4, multipliers=[1, 2, 2, 4], attention_factors=[8])),
    "vq-f16": (69.59, 16384, dict(c=8, multipliers=[1, 1, 2, 2, 4], attention_factors=[16])),
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_parameter_counts_of_the_released_models(name):
    millions, codes, options = OFFICIAL[name]
    with torch.device("meta"):
        regulariser = KL() if codes is None else VQ(options["c"], codes)
        model = Autoencoder(ConvNetwork(channels_in=regulariser.channels_in, **options), regulariser)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == millions


def test_state_dict_has_the_official_names():
    model = Autoencoder(
        ConvNetwork(4, [1, 2, 2], VQ(4, 8).channels_in, width=8, blocks=2, attention_factors=[4]), VQ(4, 8)
    )
    names = {n.removeprefix("network.").replace("regulariser.", "quantize.") for n in model.state_dict()}
    golden = """encoder.conv_in.weight encoder.down.0.block.0.norm1.weight encoder.down.0.block.1.conv2.bias
        encoder.down.1.block.0.nin_shortcut.weight encoder.down.0.downsample.conv.weight encoder.down.2.attn.1.proj_out.bias
        encoder.mid.block_1.norm2.bias encoder.mid.attn_1.q.weight encoder.mid.attn_1.norm.weight encoder.norm_out.weight
        encoder.conv_out.bias decoder.conv_in.weight decoder.mid.block_2.conv1.weight decoder.up.0.block.2.conv1.weight
        decoder.up.0.block.0.nin_shortcut.bias decoder.up.2.upsample.conv.weight decoder.up.2.attn.2.k.weight
        decoder.norm_out.bias decoder.conv_out.weight quant_conv.weight post_quant_conv.bias quantize.embedding.weight"""
    assert set(golden.split()) <= names
    absent = ("encoder.down.2.downsample", "decoder.up.0.upsample", "encoder.down.0.attn", "encoder.down.0.block.0.nin")
    assert not [n for n in names if n.startswith(absent)]
    assert {n for n in names if not n.startswith(("encoder.", "decoder."))} == {
        "quant_conv.weight", "quant_conv.bias", "post_quant_conv.weight", "post_quant_conv.bias",
        "quantize.embedding.weight", "scale", "shift",
    }  # fmt: skip


@pytest.mark.parametrize("levels", [1, 2, 3, 4, 5, 6])
def test_every_f_gives_its_latent_shape_and_decodes_back(levels):
    model = kl(c=2, multipliers=[1] * levels, width=8, blocks=1)
    image = torch.randn(1, 3, 64, 64)
    assert model.f == 2 ** (levels - 1)
    z = model.encode(image)
    assert z.shape[1:] == model.latent_shape(64) == (2, 64 // model.f, 64 // model.f)
    assert model.decode(z).shape == image.shape


def test_checkpointing_changes_memory_and_nothing_else():
    torch.manual_seed(0)
    image, gradients, held = torch.randn(2, 3, 16, 16), [], []
    for checkpointing in (False, True):
        torch.manual_seed(1)
        model = kl(c=2, multipliers=[1, 2], width=16, blocks=2, attention_factors=[2], checkpointing=checkpointing)
        elements = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, e=elements: e.append(t.numel()) or t, lambda t: t):
            loss = model(image, None).image_BCHW.square().mean()
        loss.backward()
        gradients.append([p.grad for p in model.parameters()])
        held.append(sum(elements))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)
    assert held[1] < 0.5 * held[0]


@pytest.mark.parametrize(
    ("options", "path"),
    [
        (dict(c=0, multipliers=[1, 2]), "ae.network.c=0"),
        (dict(c=2, multipliers=[]), "ae.network.multipliers=[]"),
        (dict(c=2, multipliers=[1, 0]), "ae.network.multipliers=[1, 0]"),
        (dict(c=2, multipliers=[1, 2], attention_factors=[32]), "ae.network.attention_factors=[32]"),
        (dict(c=2, multipliers=[1, 2], blocks=0), "ae.network.blocks=0"),
    ],
)
def test_impossible_options_name_themselves(options, path):
    with pytest.raises(ConfigError, match=re.escape(path)):
        kl(**options)


def to_diffusers(name):
    """Our name → diffusers' (both describe the same network; the decoder's levels run the other way there)."""
    levels = 3
    name = name.removeprefix("network.").replace("regulariser.", "quantize.")
    name = re.sub(r"encoder\.down\.(\d)\.block\.", r"encoder.down_blocks.\1.resnets.", name)
    name = re.sub(r"encoder\.down\.(\d)\.attn\.", r"encoder.down_blocks.\1.attentions.", name)
    name = re.sub(r"encoder\.down\.(\d)\.downsample\.", r"encoder.down_blocks.\1.downsamplers.0.", name)
    name = re.sub(r"decoder\.up\.(\d)\.", lambda m: f"decoder.up_blocks.{levels - 1 - int(m[1])}.", name)
    name = re.sub(r"(up_blocks\.\d)\.block\.", r"\1.resnets.", name)
    name = re.sub(r"(up_blocks\.\d)\.upsample\.", r"\1.upsamplers.0.", name)
    name = name.replace("mid.block_1", "mid_block.resnets.0").replace("mid.block_2", "mid_block.resnets.1")
    name = name.replace("nin_shortcut", "conv_shortcut").replace("norm_out", "conv_norm_out")
    if "attn" in name:
        name = name.replace("mid.attn_1", "mid_block.attentions.0").replace(".norm.", ".group_norm.")
        name = re.sub(r"\.([qkv])\.(weight|bias)$", r".to_\1.\2", name).replace("proj_out", "to_out.0")
    return name


def same_weights(ours, theirs):
    state = theirs.state_dict()
    mapped = {to_diffusers(n): v for n, v in ours.state_dict().items() if n not in ("scale", "shift")}
    assert set(mapped) == set(state)
    theirs.load_state_dict({n: v.reshape(state[n].shape) for n, v in mapped.items()})


def close(got, want):
    return (got - want).abs().max() <= 1e-5 * want.abs().max()


@pytest.mark.slow  # importing diffusers takes seconds
def test_equals_diffusers():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    common = dict(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(128, 256, 256),
        layers_per_block=1,
    )
    image = torch.randn(2, 3, 16, 16)
    theirs = diffusers.AutoencoderKL(latent_channels=3, norm_num_groups=32, **common).eval()
    ours = kl(c=3, multipliers=[1, 2, 2], blocks=1)
    same_weights(ours, theirs)
    with torch.no_grad():
        posterior = theirs.encode(image).latent_dist
        assert close(ours.moments(image), posterior.parameters)
        assert close(ours.encode(image), posterior.mode())
        z = torch.randn(2, 3, 4, 4)
        assert close(ours.decode(z), theirs.decode(z).sample)

    theirs = diffusers.VQModel(latent_channels=4, num_vq_embeddings=32, norm_num_groups=32, **common).eval()
    regulariser = VQ(4, 32)
    ours = Autoencoder(ConvNetwork(4, [1, 2, 2], regulariser.channels_in, blocks=1), regulariser)
    same_weights(ours, theirs)
    with torch.no_grad():
        assert close(ours.encode(image), theirs.encode(image).latents)
        z = torch.randn(2, 4, 4, 4) / 32
        assert close(ours.decode(z), theirs.decode(z).sample)


def test_attention_never_holds_all_pairs_of_positions():
    """One head of 16 features over 64×64 positions: all pairs would be 64 MiB, the feature maps are 256 KiB each."""
    from ldmlab.pipeline.live_memory import peak_bytes

    block, x = Attention(16).requires_grad_(False), torch.randn(1, 16, 64, 64)
    assert peak_bytes(lambda: block(x), [x], torch.device("cpu")) < 8 << 20
