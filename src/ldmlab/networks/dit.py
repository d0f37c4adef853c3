"""The transformer denoiser: DiT with adaLN-Zero (Peebles & Xie 2022, arXiv 2212.09748, §3.2 and Figure 3).

Module names and weight shapes are those of facebookresearch/DiT models.py, so that importing a checkpoint is renaming
only; its label embedding (`y_embedder`) is our conditioner's, and its fixed positions hold no weights here.

Shape letters: B batch, C channels, H W space, L patches or tokens, N heads, D features.
"""

import math
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ldmlab.errors import ConfigError
from ldmlab.networks.attention import TokenAttention, attend, prepared
from ldmlab.networks.blocks import TokenNorm, no_autocast, zeroed
from ldmlab.networks.embeddings import sincos_positions, sinusoidal
from ldmlab.networks.kv_cache import Condition, Tokens, tokens_of
from ldmlab.networks.sizes import any_depth, multiples
from ldmlab.networks.unet import mlp
from ldmlab.ranges import Depth, Given, Pixels, Range, Width

TIME_FEATURES = 256  # of the sinusoid, whatever the width (official code)


class DiT(nn.Module):
    """z_t, t and a condition → an image-like prediction of the same size, through a sequence of square patches.

    Args (those of the config; paths in messages are `ldm.network.*`):
        width: features of a patch ("hidden size"), a multiple of 4 and of `heads`.
        blocks: transformer blocks ("layers").
        heads: heads of each attention.
        patch: height and width of a patch; a quarter of it costs about 16 times the operations.
        checkpointing: keep the input of each block alone for the backward pass and compute the rest again: less memory,
            about a third more time, the same result.
        frequency_shift: frequency i of the time's sinusoid is 10000^(-i / (128 - shift)); 0 in the published networks, 1 in
            diffusers' code (docs/paper.md#dit).
    Given by the assembly, never options:
        in_channels: latent channels plus those of a concatenated condition; out_channels: latent channels (the
            published networks predict a variance too and have twice as many).
        context_dim: features of a token; each block then reads the tokens by cross-attention between its self-attention
            and its MLP (the paper's §3.2, "cross-attention block"), through an output that starts at zero. None builds
            none and takes no tokens.
        vector_dim: features of a vector condition, which is added to the time embedding: as it is when it has `width`
            features (the published label embedding), through a linear map otherwise. None for none.
        latent_size: height of the latent, only checked.

    Raises ConfigError for options that do not fit each other or the latent.
    """

    def __init__(
        self,
        in_channels: Annotated[int, Given],
        out_channels: Annotated[int, Given],
        width: Width,
        blocks: Depth,
        heads: Depth,
        patch: Pixels = 2,
        checkpointing: bool = False,
        frequency_shift: Annotated[int, Range(at_least=0, at_most=1)] = 0,
        context_dim: Annotated[int | None, Given] = None,
        vector_dim: Annotated[int | None, Given] = None,
        latent_size: Annotated[int | None, Given] = None,
    ):
        super().__init__()
        check_shape(width, blocks, heads, patch)
        self.patch, self.width = patch, width
        self.values = patch * patch * out_channels  # of a token's prediction
        self._width_step = math.lcm(4, 2 * heads)
        if latent_size is not None:
            self.check_latent(latent_size, latent_size)
        self.checkpointing = checkpointing
        self.x_embedder = PatchEmbedding(in_channels, width, patch)
        self.t_embedder = TimeEmbedding(width, frequency_shift)
        self.vector_embed: nn.Module | None = None
        if vector_dim is not None:
            self.vector_embed = nn.Identity() if vector_dim == width else xavier(nn.Linear(vector_dim, width))
        self.blocks = nn.ModuleList(Block(width, heads, context_dim) for _ in range(blocks))
        self.final_layer = FinalLayer(width, self.values)

    def forward(self, z_BCHW: Tensor, t_B: Tensor, cond: Condition) -> Tensor:
        """Prediction [B, out_channels, H, W] at times `t_B` (0 … T-1, whole or fractional).

        Raises ConfigError when H or W is not a multiple of `patch`.
        """
        self.check_latent(z_BCHW.shape[-2], z_BCHW.shape[-1])
        height, width = z_BCHW.shape[-2] // self.patch, z_BCHW.shape[-1] // self.patch
        emb_BD = self.t_embedder(t_B)
        if cond.vector_BD is not None:
            assert self.vector_embed is not None, "this network was built without vector_dim"
            emb_BD = emb_BD + self.vector_embed(cond.vector_BD)
        h_BCHW = z_BCHW if cond.concat_BCHW is None else torch.cat([z_BCHW, cond.concat_BCHW], dim=1)
        x_BLD, tokens = self.x_embedder(h_BCHW), tokens_of(cond)
        x_BLD = x_BLD + sincos_positions(height, width, x_BLD.shape[-1], x_BLD.device).to(x_BLD.dtype)
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                x_BLD = checkpoint(block, x_BLD, emb_BD, tokens, use_reentrant=False)
            else:
                x_BLD = block(x_BLD, emb_BD, tokens)
        return unpatchify(self.final_layer(x_BLD, emb_BD), height, width, self.patch)

    def prepared(self, cond: Condition) -> Condition:
        """The condition with its tokens read once, for many calls (`attention.prepared`)."""
        return prepared(self, cond)

    def widths(self) -> range:
        """Multiples with which heads have an even size (`sizes.Resizable`)."""
        return multiples(self._width_step)

    def depths(self) -> range:
        """Transformer blocks."""
        return any_depth()

    def check_latent(self, height: int, width: int) -> None:
        """Raise ConfigError unless a latent of this size can be cut into patches."""
        if height % self.patch or width % self.patch:
            raise ConfigError(
                f"ldm.network.patch={self.patch} does not divide the latent, which is {height}x{width}. Change "
                f"data.resolution (to a multiple of f·{self.patch}), or use a patch that divides it: 1 always does."
            )

    def recompute(self, on: bool) -> None:
        """Turn gradient checkpointing on or off: less memory, a second forward pass; results are the same."""
        self.checkpointing = on


class PatchEmbedding(nn.Module):
    """Each p×p patch of the input to D features by one linear map (a convolution whose stride is its size)."""

    def __init__(self, channels: int, width: int, patch: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)
        nn.init.xavier_uniform_(self.proj.weight.view(width, -1))
        nn.init.zeros_(self.proj.bias)  # type: ignore[arg-type]

    def forward(self, h_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] → [B, (H/p)(W/p), D], row by row."""
        return self.proj(h_BCHW).flatten(2).transpose(1, 2)


def unpatchify(x_BLD: Tensor, height: int, width: int, patch: int) -> Tensor:
    """[B, height·width, p·p·C] → [B, C, height·p, width·p]; a patch's features are ordered row, column, channel."""
    x_BHWPQC = x_BLD.unflatten(2, (patch, patch, -1)).unflatten(1, (height, width))
    return x_BHWPQC.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


class TimeEmbedding(nn.Module):
    """Time as a sinusoid of 256 features, then Linear, SiLU, Linear."""

    def __init__(self, width: int, frequency_shift: int):
        super().__init__()
        self.frequency_shift = frequency_shift
        self.mlp = mlp(TIME_FEATURES, width)
        for layer in (self.mlp[0], self.mlp[2]):
            nn.init.normal_(layer.weight, std=0.02)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, t_B: Tensor) -> Tensor:
        """[B] → [B, width]."""
        features_BD = sinusoidal(t_B, TIME_FEATURES, shift=self.frequency_shift)
        return self.mlp(features_BD.to(next(self.parameters()).dtype))


class Block(nn.Module):
    """Self-attention, cross-attention where there are tokens, and an MLP, with residuals; the first and the last behind
    a LayerNorm whose shift and scale, and before a gate which, the embedding decides (adaLN-Zero).

    All gates start at zero, so a new block is the identity.
    """

    one_graph: ClassVar[bool] = True

    def __init__(self, width: int, heads: int, context_dim: int | None):
        super().__init__()
        self.attn = PatchAttention(width, heads)
        self.cross = None if context_dim is None else TokenReader(width, heads, context_dim)
        self.mlp = MLP(width)
        self.adaLN_modulation = modulation(width, 6)

    def forward(self, x_BLD: Tensor, emb_BD: Tensor, tokens_BLD: Tokens | None) -> Tensor:
        """[B, L, width] → [B, L, width]. Raises ValueError when it was built for tokens and gets none."""
        shift1_B1D, scale1_B1D, gate1_B1D, shift2_B1D, scale2_B1D, gate2_B1D = (
            self.adaLN_modulation(emb_BD).unsqueeze(1).chunk(6, dim=-1)
        )
        x_BLD = x_BLD + gate1_B1D * self.attn(modulated(x_BLD, shift1_B1D, scale1_B1D))
        if self.cross is not None:
            x_BLD = x_BLD + self.cross(x_BLD, tokens_BLD)
        return x_BLD + gate2_B1D * self.mlp(modulated(x_BLD, shift2_B1D, scale2_B1D))


class FinalLayer(nn.Module):
    """LayerNorm with the embedding's shift and scale, then a linear map to the pixels of a patch; starts at zero."""

    one_graph: ClassVar[bool] = True

    def __init__(self, width: int, out: int):
        super().__init__()
        self.linear = zeroed(nn.Linear(width, out))
        self.adaLN_modulation = modulation(width, 2)

    def forward(self, x_BLD: Tensor, emb_BD: Tensor) -> Tensor:
        """[B, L, width] → [B, L, out]."""
        shift_B1D, scale_B1D = self.adaLN_modulation(emb_BD).unsqueeze(1).chunk(2, dim=-1)
        return self.linear(modulated(x_BLD, shift_B1D, scale_B1D))


class PatchAttention(nn.Module):
    """Multi-head self-attention over patches; q, k and v of all heads lie side by side in `qkv`, with biases."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = xavier(nn.Linear(width, 3 * width))
        self.proj = xavier(nn.Linear(width, width))

    def forward(self, x_BLD: Tensor) -> Tensor:
        """[B, L, width] → [B, L, width]."""
        q_BNLD, k_BNLD, v_BNLD = self.qkv(x_BLD).unflatten(-1, (3, self.heads, -1)).transpose(1, 3).unbind(2)
        return self.proj(attend(q_BNLD, k_BNLD, v_BNLD).transpose(1, 2).flatten(2))


class TokenReader(nn.Module):
    """Cross-attention from patches to the tokens of a condition behind a LayerNorm; its output starts at zero."""

    def __init__(self, width: int, heads: int, context_dim: int):
        super().__init__()
        self.norm = TokenNorm(width)
        self.attn = TokenAttention(width, heads, context_dim)
        zeroed(self.attn.to_out)

    def forward(self, x_BLD: Tensor, tokens_BLD: Tokens | None) -> Tensor:
        """[B, L, width] and tokens [B, M, context_dim], or their keys, → [B, L, width]."""
        if tokens_BLD is None:
            raise ValueError("this network was built for tokens (context_dim), but the condition has none")
        return self.attn(self.norm(x_BLD), tokens_BLD)


class MLP(nn.Module):
    """Linear to 4 times the width, GELU (its tanh form), Linear back."""

    def __init__(self, width: int):
        super().__init__()
        self.fc1 = xavier(nn.Linear(width, 4 * width))
        self.fc2 = xavier(nn.Linear(4 * width, width))

    def forward(self, x_BLD: Tensor) -> Tensor:
        """[B, L, width] → [B, L, width]."""
        return self.fc2(F.gelu(self.fc1(x_BLD), approximate="tanh"))


def modulation(width: int, pieces: int) -> nn.Sequential:
    """SiLU and a linear map from the embedding to `pieces` vectors of `width`; starts at zero."""
    return nn.Sequential(nn.SiLU(), zeroed(nn.Linear(width, pieces * width)))


def modulated(x_BLD: Tensor, shift_B1D: Tensor, scale_B1D: Tensor) -> Tensor:
    """LayerNorm (no weights, eps 1e-6) times 1 + scale, plus shift; low precision stays low (see blocks.Norm)."""
    with no_autocast(x_BLD.device.type):
        return F.layer_norm(x_BLD, x_BLD.shape[-1:], eps=1e-6) * (1 + scale_B1D) + shift_B1D


def xavier(layer: nn.Linear) -> nn.Linear:
    """The layer with weights uniform in ±√(6 / (in + out)) and no bias, as the official code starts."""
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def check_shape(width: int, blocks: int, heads: int, patch: int) -> None:
    """ConfigError unless all are positive and the width can be split into heads and into sines and cosines of 2 axes."""
    for name, value in (("width", width), ("blocks", blocks), ("heads", heads), ("patch", patch)):
        if value < 1:
            raise ConfigError(f"ldm.network.{name} must be at least 1; got {value}.")
    if width % heads:
        raise ConfigError(
            f"ldm.network.width={width} cannot be split into ldm.network.heads={heads}; "
            f"the nearest width that can: {max(1, round(width / heads)) * heads}."
        )
    if width % 4:
        raise ConfigError(
            f"ldm.network.width={width} must be a multiple of 4, for the sines and cosines of two coordinates. "
            f"Set a common multiple of 4 and ldm.network.heads={heads}: {math.lcm(4, heads) * max(1, round(width / math.lcm(4, heads)))}."
        )
