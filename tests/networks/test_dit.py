"""DiT: published sizes and operations, equality with diffusers' network, adaLN-Zero's start, the seams for conditions."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from network_inputs import cond, inputs, stirred
from torch import Tensor

from ldmlab import build
from ldmlab.config.compose import CONF
from ldmlab.errors import ConfigError
from ldmlab.networks.dit import DiT, unpatchify
from ldmlab.networks.embeddings import sincos_positions
from ldmlab.pipeline.costs import flops_of


def dit(**options: object) -> DiT:
    given = {"in_channels": 4, "out_channels": 4, "width": 32, "blocks": 2, "heads": 2} | options
    return DiT(**given)  # type: ignore[arg-type]


# Millions of parameters, 10⁹ multiply-adds of one forward pass at 32x32x4: the DiT paper's Table 4 and repository
PUBLISHED = {"dit_s_2": (33, 6.06), "dit_b_2": (130, 23.01), "dit_l_2": (458, 80.71), "dit_xl_2": (675, 118.64)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_and_operations_are_the_published_ones(name: str) -> None:
    """The published scope: the label embedding of 1000 classes and none included, and a variance beside eps."""
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        node = compose(f"ldm/{name}").ldm.network
    with build.shapes_only():
        net = build.part(node, in_channels=4, out_channels=8, vector_dim=node.width)
        z, t, vector = torch.empty(1, 4, 32, 32), torch.zeros(1), torch.empty(1, node.width)
    millions, multiply_adds = PUBLISHED[name]
    count = sum(p.numel() for p in net.parameters()) + 1001 * node.width
    assert round(count / 1e6) == millions
    assert flops_of(lambda: net(z, t, cond(vector=vector))) / 2e9 == pytest.approx(multiply_adds, rel=2e-3)


def test_equals_diffusers() -> None:
    """Same layers, same weights, class label as a vector. diffusers spaces its frequencies of t over half - 1 (official:
    half) and, by default, has eps 1e-5; both are set to the official values."""
    diffusers = pytest.importorskip("diffusers")
    peer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=3, out_channels=3, num_layers=2, sample_size=8,
        patch_size=2, num_embeds_ada_norm=5, norm_eps=1e-6,
    ).eval()  # fmt: skip
    net = stirred(dit(in_channels=3, out_channels=3, vector_dim=32))
    rows_KD = torch.randn(6, 32, generator=torch.Generator().manual_seed(3))
    state = net.state_dict()
    theirs: dict[str, Tensor] = {
        "pos_embed.proj.weight": state.pop("x_embedder.proj.weight"),
        "pos_embed.proj.bias": state.pop("x_embedder.proj.bias"),
    }
    time = {k: state.pop(f"t_embedder.mlp.{k}") for k in ("0.weight", "0.bias", "2.weight", "2.bias")}
    for b in range(2):
        ours, block = f"blocks.{b}.", f"transformer_blocks.{b}."
        for kind in ("weight", "bias"):
            for name, value in zip("qkv", state.pop(f"{ours}attn.qkv.{kind}").chunk(3), strict=True):
                theirs[f"{block}attn1.to_{name}.{kind}"] = value
            theirs[f"{block}attn1.to_out.0.{kind}"] = state.pop(f"{ours}attn.proj.{kind}")
            theirs[f"{block}ff.net.0.proj.{kind}"] = state.pop(f"{ours}mlp.fc1.{kind}")
            theirs[f"{block}ff.net.2.{kind}"] = state.pop(f"{ours}mlp.fc2.{kind}")
            theirs[f"{block}norm1.linear.{kind}"] = state.pop(f"{ours}adaLN_modulation.1.{kind}")
            theirs[f"{block}norm1.emb.timestep_embedder.linear_1.{kind}"] = time[f"0.{kind}"]
            theirs[f"{block}norm1.emb.timestep_embedder.linear_2.{kind}"] = time[f"2.{kind}"]
        theirs[f"{block}norm1.emb.class_embedder.embedding_table.weight"] = rows_KD
    for kind in ("weight", "bias"):
        theirs[f"proj_out_1.{kind}"] = state.pop(f"final_layer.adaLN_modulation.1.{kind}")
        theirs[f"proj_out_2.{kind}"] = state.pop(f"final_layer.linear.{kind}")
    assert not state
    peer.load_state_dict(theirs)
    for block in peer.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    z, t = inputs(c=3)
    label = torch.tensor([4, 0, 2])
    with torch.no_grad():
        mine, other = net(z, t, cond(vector=rows_KD[label])), peer(z, t, label).sample
    assert (mine - other).norm() / other.norm() < 1e-5


def test_a_new_network_answers_zero_and_its_blocks_pass_everything_on() -> None:
    net = dit(context_dim=6, vector_dim=5)
    z, t = inputs()
    tokens = torch.randn(3, 2, 6)
    assert not net(z, t, cond(tokens, vector=torch.randn(3, 5))).any()
    x = torch.randn(3, 16, 32)
    for block in net.blocks:
        assert torch.equal(block(x, torch.randn(3, 32), tokens), x)


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_patches_and_back(patch: int) -> None:
    """With weights that copy each pixel of a patch into one feature, embedding and unpatchify undo each other."""
    features = patch * patch * 3
    net = dit(in_channels=3, out_channels=3, width=96, patch=patch)
    z = torch.randn(2, 3, 8, 12)
    with torch.no_grad():
        copy = torch.eye(features).reshape(patch, patch, 3, -1).permute(3, 2, 0, 1)  # feature (row, column, channel)
        net.x_embedder.proj.weight.zero_()[:features].copy_(copy)
    x = net.x_embedder(z)
    assert x.shape == (2, 96 // patch**2, 96)
    assert torch.equal(unpatchify(x[..., :features], 8 // patch, 12 // patch, patch), z)


def test_positions_are_all_different_and_rows_do_not_depend_on_columns() -> None:
    position = sincos_positions(3, 5, 16, "cpu").unflatten(0, (3, 5))
    assert torch.equal(position[0, :, :8], position[2, :, :8]) and torch.equal(position[:, 0, 8:], position[:, 4, 8:])
    assert len(position.flatten(0, 1).unique(dim=0)) == 15
    angle = torch.tensor([2.0, 0.2, 0.02, 0.002])  # column 2 at 10000^(-4i / 16)
    torch.testing.assert_close(position[0, 2, :8], torch.cat([angle.sin(), angle.cos()]))


@pytest.mark.parametrize("vector_dim", [5, 32])
def test_each_condition_matters_and_every_parameter_learns(vector_dim: int) -> None:
    z, t = inputs()
    net = stirred(dit(in_channels=7, context_dim=16, vector_dim=vector_dim))
    tokens, concat, vector = torch.randn(3, 2, 16), torch.randn(3, 3, 8, 8), torch.randn(3, vector_dim)
    out = net(z, t, cond(tokens, concat, vector))
    assert out.shape == z.shape
    for other in (cond(-tokens, concat, vector), cond(tokens, -concat, vector), cond(tokens, concat, -vector)):
        assert not torch.allclose(out, net(z, t, other))
    assert not torch.allclose(out, net(z, t - 1, cond(tokens, concat, vector)))
    torch.testing.assert_close(out, net(z, t, cond(tokens.flip(1), concat, vector)), rtol=1e-4, atol=1e-5)
    out.square().mean().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []
    with pytest.raises(ValueError, match="built for tokens"):
        net(z, t, cond(None, concat, vector))


def test_checkpointing_changes_memory_and_nothing_else() -> None:
    z, t = inputs()
    tokens = torch.randn(3, 2, 16)
    state = stirred(dit(context_dim=16)).state_dict()

    def result(checkpointing: bool) -> list[Tensor]:
        net = dit(context_dim=16, checkpointing=checkpointing)
        net.load_state_dict(state)
        out = net(z, t, cond(tokens))
        out.square().mean().backward()
        return [out, *(p.grad for p in net.parameters() if p.grad is not None)]

    for mine, other in zip(result(True), result(False), strict=True):
        assert torch.equal(mine, other)


def test_bfloat16_agrees_with_float32() -> None:
    net = stirred(dit(context_dim=16))
    z, t = inputs()
    tokens = torch.randn(3, 2, 16)
    out = net(z, t, cond(tokens))
    with torch.autocast("cpu", torch.bfloat16):
        low = net(z, t, cond(tokens))
    assert low.dtype == torch.bfloat16
    assert (low.float() - out).norm() / out.norm() < 0.05


@pytest.mark.slow  # the compiler alone takes seconds to import
def test_compiles_as_one_graph_for_any_time() -> None:
    net = stirred(dit(context_dim=16, vector_dim=5))
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    z, t = inputs()
    condition = cond(torch.randn(3, 2, 16), vector=torch.randn(3, 5))
    torch._dynamo.utils.counters.clear()
    with torch.no_grad():
        for step in range(100):
            time = torch.full_like(t, 999 - 10 * step)
            torch.testing.assert_close(compiled(z, time, condition), net(z, time, condition))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"heads": 5}, ["ldm.network.width=32", "ldm.network.heads=5", "30"]),
        ({"width": 30, "heads": 3}, ["ldm.network.width=30", "multiple of 4"]),
        ({"patch": 0}, ["ldm.network.patch must be at least 1", "0"]),
        ({"patch": 4, "latent_size": 6}, ["ldm.network.patch=4", "6x6", "data.resolution"]),
    ],
)
def test_options_that_do_not_fit_are_named(options: dict[str, object], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        dit(**options)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_latents_that_cannot_be_cut_are_refused() -> None:
    with pytest.raises(ConfigError, match="7x8"):
        dit()(torch.zeros(1, 4, 7, 8), torch.zeros(1), cond())
