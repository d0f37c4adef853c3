"""The UNet: official names, seams for conditions, honest complaints."""

import pytest
import torch
from network_inputs import cond, inputs, stirred
from torch import Tensor

from ldmlab.errors import ConfigError
from ldmlab.networks.unet import UNet


def build(c: int = 4, **options: object) -> UNet:
    given = {"width": 32, "multipliers": [1, 2], "blocks": 1, "attention_factors": [2], "heads": 2} | options
    return UNet(c, c, **given)  # type: ignore[arg-type]


def test_names_are_the_official_ones() -> None:
    shapes = {k: tuple(v.shape) for k, v in build(context_dim=16).state_dict().items()}
    official = {
        "time_embed.0.weight": (128, 32),
        "time_embed.2.bias": (128,),
        "input_blocks.0.0.weight": (32, 4, 3, 3),
        "input_blocks.1.0.in_layers.0.weight": (32,),
        "input_blocks.1.0.emb_layers.1.weight": (32, 128),
        "input_blocks.1.0.out_layers.3.weight": (32, 32, 3, 3),
        "input_blocks.2.0.op.weight": (32, 32, 3, 3),
        "input_blocks.3.0.skip_connection.weight": (64, 32, 1, 1),
        "input_blocks.3.1.norm.weight": (64,),
        "input_blocks.3.1.proj_in.weight": (64, 64, 1, 1),
        "input_blocks.3.1.transformer_blocks.0.attn1.to_q.weight": (64, 64),
        "input_blocks.3.1.transformer_blocks.0.attn2.to_k.weight": (64, 16),
        "input_blocks.3.1.transformer_blocks.0.attn2.to_out.0.bias": (64,),
        "input_blocks.3.1.transformer_blocks.0.ff.net.0.proj.weight": (512, 64),
        "input_blocks.3.1.transformer_blocks.0.ff.net.2.weight": (64, 256),
        "input_blocks.3.1.transformer_blocks.0.norm3.bias": (64,),
        "middle_block.1.proj_out.weight": (64, 64, 1, 1),
        "middle_block.2.in_layers.2.weight": (64, 64, 3, 3),
        "output_blocks.0.0.in_layers.2.weight": (64, 128, 3, 3),
        "output_blocks.1.2.conv.weight": (64, 64, 3, 3),
        "output_blocks.3.0.skip_connection.weight": (32, 64, 1, 1),
        "out.0.weight": (32,),
        "out.2.weight": (4, 32, 3, 3),
    }
    assert official.items() <= shapes.items()
    assert "input_blocks.3.1.transformer_blocks.0.attn1.to_q.bias" not in shapes
    plain = {k: tuple(v.shape) for k, v in build().state_dict().items()}
    assert plain["middle_block.1.qkv.weight"] == (192, 64, 1)
    assert plain["middle_block.1.proj_out.weight"] == (64, 64, 1)


def test_a_new_network_answers_zero() -> None:
    z, t = inputs()
    assert not build()(z, t, cond()).any()


@pytest.mark.parametrize(
    "options", [{}, {"scale_shift_norm": True, "resblock_updown": True}, {"attention_factors": []}]
)
def test_every_parameter_learns(options: dict[str, object]) -> None:
    net = stirred(build(context_dim=16, vector_dim=5, **options))
    z, t = inputs()
    tokens = torch.randn(3, 4, 16, generator=torch.Generator().manual_seed(2))
    net(z, t, cond(tokens, vector=torch.ones(3, 5))).square().mean().backward()
    silent = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_examples_do_not_see_each_other() -> None:
    net = stirred(build(context_dim=16)).double()
    z, t = inputs()
    tokens = torch.randn(3, 2, 16, dtype=torch.float64)
    together = net(z.double(), t, cond(tokens))
    alone = torch.cat([net(z[i : i + 1].double(), t[i : i + 1], cond(tokens[i : i + 1])) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-8)  # the sinusoid is float32


def test_each_condition_matters_and_lands_where_it_should() -> None:
    z, t = inputs()
    net = stirred(UNet(7, 4, 32, [1, 2], 1, attention_factors=[2], heads=2, context_dim=16, vector_dim=5))
    tokens, concat, vector = torch.randn(3, 2, 16), torch.randn(3, 3, 8, 8), torch.randn(3, 5)
    out = net(z, t, cond(tokens, concat, vector))
    assert out.shape == z.shape
    for other in (cond(-tokens, concat, vector), cond(tokens, -concat, vector), cond(tokens, concat, -vector)):
        assert not torch.allclose(out, net(z, t, other))
    swapped = net(z, t, cond(tokens.flip(1), concat, vector))
    torch.testing.assert_close(out, swapped, rtol=1e-4, atol=1e-5)  # cross-attention has no order of tokens


def test_tokens_are_not_forgotten_silently() -> None:
    z, t = inputs()
    with pytest.raises(ValueError, match="built for tokens"):
        build(context_dim=16)(z, t, cond())


def test_one_token_shortcut_of_sampling_is_exact() -> None:
    net = stirred(build(context_dim=16)).double()
    z, t = inputs()
    tokens = torch.randn(3, 1, 16, dtype=torch.float64)
    with torch.no_grad():
        short = net(z.double(), t, cond(tokens))
    torch.testing.assert_close(short, net(z.double(), t, cond(tokens)).detach(), rtol=1e-12, atol=1e-12)


def test_recomputation_changes_memory_and_nothing_else() -> None:
    z, t = inputs()
    tokens = torch.randn(3, 2, 16)
    state = stirred(build(context_dim=16)).state_dict()

    def gradients(checkpointing: bool) -> list[Tensor]:
        net = build(context_dim=16, dropout=0.2, checkpointing=checkpointing)
        net.load_state_dict(state)
        torch.manual_seed(0)
        out = net(z, t, cond(tokens))
        out.square().mean().backward()
        return [out, *(p.grad for p in net.parameters() if p.grad is not None)]

    for mine, other in zip(gradients(True), gradients(False), strict=True):
        assert torch.equal(mine, other)


def test_channels_last_and_bfloat16_agree_with_float32() -> None:
    net = stirred(build(context_dim=16))
    z, t = inputs()
    tokens = torch.randn(3, 2, 16)
    out = net(z, t, cond(tokens))
    with torch.autocast("cpu", torch.bfloat16):
        low = net(z, t, cond(tokens))
    assert low.dtype == torch.bfloat16
    assert (low.float() - out).norm() / out.norm() < 0.05
    last = net.to(memory_format=torch.channels_last)
    torch.testing.assert_close(last(z, t, cond(tokens)), out, rtol=1e-4, atol=1e-4)


@pytest.mark.slow  # the compiler alone takes seconds to import
def test_compiles_as_one_graph_for_any_time() -> None:
    net = stirred(build(context_dim=16))
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    z, t = inputs()
    tokens = torch.randn(3, 1, 16)
    torch._dynamo.utils.counters.clear()
    for shift in range(3):
        time = (t - shift).clamp(min=0)
        torch.testing.assert_close(compiled(z, time, cond(tokens)), net(z, time, cond(tokens)))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_sizes_and_factors_are_two_words_for_one_network() -> None:
    by_size = build(attention_factors=None, attention_sizes=[4], latent_size=8).state_dict()
    assert by_size.keys() == build(attention_factors=[2]).state_dict().keys()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"width": 48}, ["ldm.network.width=48", "32 or 64"]),
        ({"width": 16}, ["ldm.network.width=16", "32."]),
        ({"multipliers": []}, ["ldm.network.multipliers"]),
        ({"blocks": 0}, ["ldm.network.blocks"]),
        ({"dropout": 1.0}, ["ldm.network.dropout"]),
        ({"transformer_depth": 0}, ["ldm.network.transformer_depth"]),
        ({"attention_factors": [32, 16, 8]}, ["attention_factors=[32, 16, 8]", "[1, 2]", "semantic", "write []"]),
        ({"attention_factors": None}, ["exactly one of attention_factors"]),
        ({"attention_sizes": [4], "latent_size": 8}, ["exactly one of attention_factors"]),
        ({"attention_factors": None, "attention_sizes": [3], "latent_size": 8}, ["attention_sizes=[3]", "[8, 4]"]),
        ({"attention_factors": None, "attention_sizes": [4]}, ["needs the latent's size"]),
        ({"head_channels": 32}, ["exactly one of heads and head_channels"]),
        ({"heads": None}, ["exactly one of heads and head_channels"]),
        ({"heads": 3}, ["heads=3", "[64]"]),
        ({"heads": None, "head_channels": 48}, ["head_channels=48", "[64]"]),
        ({"norm_group_channels": 8}, ["exactly one of norm_groups", "norm_groups=32", "null"]),
        ({"norm_groups": None}, ["exactly one of norm_groups"]),
        (
            {"norm_groups": None, "norm_group_channels": 8, "width": 20},
            ["width=20", "groups of 8 channels", "16 or 24"],
        ),
        ({"level_channels": [32]}, ["level_channels=[32] has 1 numbers", "2 levels"]),
        ({"level_channels": [32, 48]}, ["level_channels=[32, 48]: [48]", "multiple of 32"]),
    ],
)
def test_options_that_do_not_fit_are_named(options: dict[str, object], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        build(**options)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_latents_that_cannot_be_halved_are_refused() -> None:
    with pytest.raises(ConfigError, match="multiples of 2; this latent is 7x8"):
        build()(torch.zeros(1, 4, 7, 8), torch.zeros(1), cond())


def test_one_rule_for_the_groups_of_every_normalisation() -> None:
    options = {"norm_groups": None, "norm_group_channels": 8, "level_channels": [24, 88], "width": 24, "heads": 2}
    net = build(context_dim=16, **options)
    norms = [module for module in net.modules() if isinstance(module, torch.nn.GroupNorm)]
    assert {n.num_channels // n.num_groups for n in norms} == {8} and {n.num_channels for n in norms} >= {
        24,
        88,
        112,
        176,
    }
    assert {n.num_groups for n in build(context_dim=16).modules() if isinstance(n, torch.nn.GroupNorm)} == {32}
    h_BCHW = norms[0](torch.randn(2, norms[0].num_channels, 4, 4) * 3 + 1)
    grouped = h_BCHW.unflatten(1, (-1, 8))
    torch.testing.assert_close(grouped.mean(dim=(2, 3, 4)), torch.zeros(2, grouped.shape[1]), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        grouped.var(dim=(2, 3, 4), correction=0), torch.ones(2, grouped.shape[1]), atol=1e-3, rtol=0
    )


def test_levels_given_as_channels_are_the_levels_that_multipliers_make() -> None:
    z, t = inputs()
    torch.manual_seed(0)
    one = stirred(build())
    two = build(level_channels=[32, 64], multipliers=[5, 7])
    two.load_state_dict(one.state_dict())
    assert torch.equal(one(z, t, cond()), two(z, t, cond()))


@pytest.mark.parametrize("options", [{"heads": 4}, {"heads": 6}, {"head_channels": 48}])
def test_every_width_that_it_names_can_be_built(options: dict[str, int]) -> None:
    """The seam of `ldm.budget`: a search takes any of these, and the network says them whatever its own size."""

    def build(width: int, blocks: int = 1) -> UNet:
        return UNet(3, 3, width=width, multipliers=[1, 2], blocks=blocks, attention_factors=[1, 2], **options)

    with torch.device("meta"):
        widths = build(
            96 if ("heads" in options and options["heads"] == 6) or "head_channels" in options else 64
        ).widths()
        assert widths[0] > 0 and build(widths[0]).widths() == widths
        assert [build(w).width for w in (*widths[:3], widths[20])] == [*widths[:3], widths[20]]
        assert build(widths[0], build(widths[0]).depths()[1]) is not None
