"""Names and shapes of the official classes, written down from the official code and from nothing of ours.

first_stage   AutoencoderKL and VQModelInterface (ldm/models/autoencoder.py, modules/diffusionmodules/model.py)
unet          UNetModel (modules/diffusionmodules/openaimodel.py, modules/attention.py)
bert_embedder, spatial_rescaler   condition models (modules/encoders/modules.py, modules/x_transformer.py)
whole_model   LatentDiffusion's checkpoint (models/diffusion/ddpm.py): UNet, average, condition, first stage, schedule
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

Shapes = dict[str, tuple[int, ...]]

SCHEDULE = (
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance",
    "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2",
)  # fmt: skip
"""Persistent buffers of register_schedule; lvlb_weights is registered with persistent=False."""


def _pair(name: str, weight: tuple[int, ...], bias: bool = True) -> Shapes:
    return {f"{name}.weight": weight} | ({f"{name}.bias": weight[:1]} if bias else {})


def _conv(name: str, into: int, out: int, k: int = 3) -> Shapes:
    return _pair(name, (out, into, k, k))


def _norm(name: str, channels: int) -> Shapes:
    return _pair(name, (channels,))


def _joined(parts: Iterable[Shapes]) -> Shapes:
    return {name: shape for part in parts for name, shape in part.items()}


# ---- first stages --------------------------------------------------------------------------------------------------------


class FirstStage(NamedTuple):
    """ddconfig of configs/autoencoder and of the model zoo's VQ models; ch is 128 there, and narrower in a test."""

    z: int
    ch_mult: tuple[int, ...]
    attention_factors: tuple[int, ...] = ()  # attn_resolutions, as 256 over them
    blocks: int = 2
    codes: int | None = None
    attn_type: str = "vanilla"


FIRST_STAGES = {
    "kl_f4": FirstStage(3, (1, 2, 4)),
    "kl_f8": FirstStage(4, (1, 2, 4, 4)),
    "kl_f16": FirstStage(16, (1, 1, 2, 2, 4), (16,)),
    "kl_f32": FirstStage(64, (1, 1, 2, 2, 4, 4), (16, 32)),
    "vq_f4": FirstStage(3, (1, 2, 4), codes=8192),
    "vq_f4_noattn": FirstStage(3, (1, 2, 4), codes=8192, attn_type="none"),
    "vq_f8": FirstStage(4, (1, 2, 2, 4), (8,), codes=16384),
    "vq_f8_n256": FirstStage(4, (1, 2, 2, 4), (8,), codes=256),
    "vq_f16": FirstStage(8, (1, 1, 2, 2, 4), (16,), codes=16384),
}


def _resnet(name: str, into: int, out: int) -> Shapes:
    parts = [_norm(f"{name}.norm1", into), _conv(f"{name}.conv1", into, out), _norm(f"{name}.norm2", out),
             _conv(f"{name}.conv2", out, out)]  # fmt: skip
    return _joined(parts + ([_conv(f"{name}.nin_shortcut", into, out, 1)] if into != out else []))


def _attn(name: str, channels: int) -> Shapes:
    return _norm(f"{name}.norm", channels) | _joined(
        _conv(f"{name}.{part}", channels, channels, 1) for part in ("q", "k", "v", "proj_out")
    )


def _middle(name: str, channels: int, attn_type: str) -> Shapes:
    attention = _attn(f"{name}.attn_1", channels) if attn_type == "vanilla" else {}
    return _resnet(f"{name}.block_1", channels, channels) | attention | _resnet(f"{name}.block_2", channels, channels)


def first_stage(kind: FirstStage, ch: int) -> Shapes:
    """encoder, decoder, quant_conv, post_quant_conv and the codebook."""
    levels, moments = len(kind.ch_mult), kind.z if kind.codes else 2 * kind.z
    shapes, channels = _conv("encoder.conv_in", 3, ch), ch
    for level, multiplier in enumerate(kind.ch_mult):
        at, attended = f"encoder.down.{level}", 2**level in kind.attention_factors and kind.attn_type == "vanilla"
        for block in range(kind.blocks):
            shapes |= _resnet(f"{at}.block.{block}", channels, ch * multiplier)
            channels = ch * multiplier
            shapes |= _attn(f"{at}.attn.{block}", channels) if attended else {}
        shapes |= _conv(f"{at}.downsample.conv", channels, channels) if level != levels - 1 else {}
    shapes |= _middle("encoder.mid", channels, kind.attn_type) | _norm("encoder.norm_out", channels)
    shapes |= _conv("encoder.conv_out", channels, moments) | _conv("decoder.conv_in", kind.z, channels)
    shapes |= _middle("decoder.mid", channels, kind.attn_type)
    for level in reversed(range(levels)):
        at, attended = f"decoder.up.{level}", 2**level in kind.attention_factors and kind.attn_type == "vanilla"
        for block in range(kind.blocks + 1):
            shapes |= _resnet(f"{at}.block.{block}", channels, ch * kind.ch_mult[level])
            channels = ch * kind.ch_mult[level]
            shapes |= _attn(f"{at}.attn.{block}", channels) if attended else {}
        shapes |= _conv(f"{at}.upsample.conv", channels, channels) if level else {}
    shapes |= _norm("decoder.norm_out", channels) | _conv("decoder.conv_out", channels, 3)
    shapes |= _conv("quant_conv", moments, moments, 1) | _conv("post_quant_conv", kind.z, kind.z, 1)
    return shapes | ({"quantize.embedding.weight": (kind.codes, kind.z)} if kind.codes else {})


# ---- UNets ---------------------------------------------------------------------------------------------------------------


class UNetKind(NamedTuple):
    """unet_config of configs/latent-diffusion; model_channels is 192 to 256 there, and narrower in a test."""

    channels: int
    channel_mult: tuple[int, ...]
    attention_resolutions: tuple[int, ...]  # factors, whatever the word says
    num_res_blocks: int
    context_dim: int | None = None  # use_spatial_transformer
    scale_shift: bool = False  # use_scale_shift_norm
    updown: bool = False  # resblock_updown
    concat: int = 0  # in_channels beyond out_channels


def _res(name: str, into: int, out: int, embedded: int, scale_shift: bool) -> Shapes:
    return _joined([
        _norm(f"{name}.in_layers.0", into), _conv(f"{name}.in_layers.2", into, out),
        _pair(f"{name}.emb_layers.1", (out * (1 + scale_shift), embedded)), _norm(f"{name}.out_layers.0", out),
        _conv(f"{name}.out_layers.3", out, out), _conv(f"{name}.skip_connection", into, out, 1) if into != out else {},
    ])  # fmt: skip


def _attention(name: str, c: int, context: int | None) -> Shapes:
    if context is None:  # AttentionBlock
        qkv, out = _pair(f"{name}.qkv", (3 * c, c, 1)), _pair(f"{name}.proj_out", (c, c, 1))
        return _norm(f"{name}.norm", c) | qkv | out
    block = f"{name}.transformer_blocks.0"  # SpatialTransformer
    shapes = _norm(f"{name}.norm", c) | _conv(f"{name}.proj_in", c, c, 1) | _conv(f"{name}.proj_out", c, c, 1)
    for attn, of in (("attn1", c), ("attn2", context)):
        shapes |= _pair(f"{block}.{attn}.to_q", (c, c), bias=False) | _pair(f"{block}.{attn}.to_out.0", (c, c))
        shapes |= _joined(_pair(f"{block}.{attn}.{part}", (c, of), bias=False) for part in ("to_k", "to_v"))
    shapes |= _pair(f"{block}.ff.net.0.proj", (8 * c, c)) | _pair(f"{block}.ff.net.2", (c, 4 * c))
    return shapes | _joined(_norm(f"{block}.norm{i}", c) for i in (1, 2, 3))


def unet(kind: UNetKind, width: int) -> Shapes:
    """UNetModel's own names."""
    embedded, levels = 4 * width, len(kind.channel_mult)

    def res(name: str, into: int, out: int) -> Shapes:
        return _res(name, into, out, embedded, kind.scale_shift)

    shapes = _pair("time_embed.0", (embedded, width)) | _pair("time_embed.2", (embedded, embedded))
    shapes |= _conv("input_blocks.0.0", kind.channels + kind.concat, width)
    channels, kept, index = width, [width], 0
    for level, multiplier in enumerate(kind.channel_mult):
        for _ in range(kind.num_res_blocks):
            index += 1
            shapes |= res(f"input_blocks.{index}.0", channels, width * multiplier)
            channels = width * multiplier
            if 2**level in kind.attention_resolutions:
                shapes |= _attention(f"input_blocks.{index}.1", channels, kind.context_dim)
            kept.append(channels)
        if level != levels - 1:
            index += 1
            at = f"input_blocks.{index}.0"
            shapes |= res(at, channels, channels) if kind.updown else _conv(f"{at}.op", channels, channels)
            kept.append(channels)
    shapes |= res("middle_block.0", channels, channels) | res("middle_block.2", channels, channels)
    shapes |= _attention("middle_block.1", channels, kind.context_dim)
    index = 0
    for level in reversed(range(levels)):
        for block in range(kind.num_res_blocks + 1):
            at, attended = f"output_blocks.{index}", 2**level in kind.attention_resolutions
            shapes |= res(f"{at}.0", channels + kept.pop(), width * kind.channel_mult[level])
            channels = width * kind.channel_mult[level]
            shapes |= _attention(f"{at}.1", channels, kind.context_dim) if attended else {}
            if level and block == kind.num_res_blocks:
                last = f"{at}.{1 + attended}"
                shapes |= res(last, channels, channels) if kind.updown else _conv(f"{last}.conv", channels, channels)
            index += 1
    return shapes | _norm("out.0", channels) | _conv("out.2", channels, kind.channels)


# ---- conditions ----------------------------------------------------------------------------------------------------------


def class_embedder(n_classes: int, embed_dim: int) -> Shapes:
    """ClassEmbedder."""
    return {"embedding.weight": (n_classes, embed_dim)}


def bert_embedder(n_embed: int, n_layer: int, vocab_size: int, max_seq_len: int) -> Shapes:
    """BERTEmbedder: a TransformerWrapper over an Encoder with x_transformer.py's defaults, 8 heads of 64; its tokenizer has no tensors."""
    inner, shapes = 8 * 64, {"token_emb.weight": (vocab_size, n_embed), "pos_emb.emb.weight": (max_seq_len, n_embed)}
    for layer in range(n_layer):
        attention, mlp = f"attn_layers.layers.{2 * layer}", f"attn_layers.layers.{2 * layer + 1}"
        shapes |= _norm(f"{attention}.0", n_embed) | _norm(f"{mlp}.0", n_embed)
        shapes |= _joined(
            _pair(f"{attention}.1.{part}", (inner, n_embed), bias=False) for part in ("to_q", "to_k", "to_v")
        )
        shapes |= _pair(f"{attention}.1.to_out", (n_embed, inner))
        shapes |= _pair(f"{mlp}.1.net.0.0", (4 * n_embed, n_embed)) | _pair(f"{mlp}.1.net.2", (n_embed, 4 * n_embed))
    shapes |= _norm("norm", n_embed) | _pair("to_logits", (vocab_size, n_embed))
    return {f"transformer.{name}": shape for name, shape in shapes.items()}


def bert_tokenizer(folder: Path) -> Path:
    """BERTTokenizer's, small, in a folder as `transformers` writes it."""
    from transformers import BertTokenizerFast

    folder.mkdir(exist_ok=True)
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *"abcdefghijklmnopqrstuvwxyz",
        *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"),
    ]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def spatial_rescaler(in_channels: int, out_channels: int) -> Shapes:
    """SpatialRescaler with out_channels given and no bias."""
    return _pair("channel_mapper", (out_channels, in_channels, 1, 1), bias=False)


def whole_model(network: Shapes, first: Shapes, condition: Shapes, scale_by_std: bool, T: int = 1000) -> Shapes:
    """A LatentDiffusion checkpoint with use_ema, log-variance not learnt. condition: of cond_stage_model; empty without one."""
    shapes = {f"model.diffusion_model.{name}": shape for name, shape in network.items()}
    shapes |= {f"model_ema.diffusion_model{name.replace('.', '')}": shape for name, shape in network.items()}
    shapes |= {"model_ema.decay": (), "model_ema.num_updates": ()} | dict.fromkeys(SCHEDULE, (T,))
    shapes |= {f"first_stage_model.{name}": shape for name, shape in first.items()}
    shapes |= {f"cond_stage_model.{name}": shape for name, shape in condition.items()}
    return shapes | ({"scale_factor": ()} if scale_by_std else {})


# ---- modules -------------------------------------------------------------------------------------------------------------


def module_of(shapes: Shapes) -> nn.Module:
    """A module with exactly these tensors, so that load_state_dict(strict=True) is the official one's."""
    root = nn.Module()
    for name, shape in shapes.items():
        *folders, leaf = name.split(".")
        owner = root
        for folder in folders:
            if folder not in owner._modules:
                owner.add_module(folder, nn.Module())
            owner = owner._modules[folder]  # type: ignore[assignment]
        kind = torch.int if leaf == "num_updates" else torch.float32
        owner.register_buffer(leaf, torch.zeros(shape, dtype=kind))
    return root


def random_state(shapes: Shapes, seed: int) -> dict[str, Tensor]:
    """Every tensor distinct, and of a size with which signals neither vanish nor grow."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        gain = 1.0 if name.endswith("weight") and len(shape) == 1 else 0.0  # of a normalisation
        found[name] = noise / max(noise[0].numel(), 1) ** 0.5 if len(shape) > 1 else gain + 0.1 * noise
    return found


def schedule(start: float, end: float, T: int = 1000) -> dict[str, Tensor]:
    """register_schedule with make_beta_schedule("linear"): linear in the root of beta; float64, then float32."""
    betas = torch.linspace(start**0.5, end**0.5, T, dtype=torch.float64) ** 2
    alphas = 1.0 - betas
    bar = torch.cumprod(alphas, 0)
    before = torch.cat([torch.ones(1, dtype=torch.float64), bar[:-1]])
    variance = betas * (1.0 - before) / (1.0 - bar)
    values = [betas, bar, before, bar.sqrt(), (1.0 - bar).sqrt(), (1.0 - bar).log(), (1.0 / bar).sqrt(), (1.0 / bar - 1).sqrt(),
              variance, variance.clamp_min(1e-20).log(), betas * before.sqrt() / (1.0 - bar),
              (1.0 - before) * alphas.sqrt() / (1.0 - bar)]  # fmt: skip
    return {name: value.float() for name, value in zip(SCHEDULE, values, strict=True)}


class LitEma(nn.Module):
    """The official average (modules/ema.py), for one tensor a name; goes on from what a checkpoint holds."""

    def __init__(self, tensors: Mapping[str, Tensor], decay: float = 0.9999):
        super().__init__()
        self.register_buffer("decay", torch.tensor(decay, dtype=torch.float32))
        self.register_buffer("num_updates", torch.tensor(0, dtype=torch.int))
        for name, tensor in tensors.items():
            self.register_buffer(name.replace(".", ""), tensor.clone())

    @torch.no_grad()
    def update(self, tensors: Mapping[str, Tensor]) -> None:
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        for name, tensor in tensors.items():
            shadow = getattr(self, name.replace(".", ""))
            shadow.sub_((1.0 - decay) * (shadow - tensor))


def differing(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Iterator[str]:
    """Names that one lacks, or whose tensors differ in type, shape or any bit."""
    for name in {**a, **b}:
        if name not in a or name not in b or a[name].dtype != b[name].dtype or not torch.equal(a[name], b[name]):
            yield name
