"""The classifier of noisy latents: its pool against the formula, its sizes against what is printed, its errors."""

from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from ldmlab import build
from ldmlab.config.compose import CONF
from ldmlab.errors import ConfigError
from ldmlab.networks.noisy_classifier import AttentionPool, NoisyClassifier


def millions(**options: Any) -> float:
    with build.shapes_only():
        return sum(p.numel() for p in NoisyClassifier(**options).parameters()) / 1e6


def test_attention_pool_is_one_query_of_the_mean() -> None:
    torch.manual_seed(0)
    pool, h = AttentionPool(8, heads=2, out=3, size=3), torch.randn(2, 8, 3, 3)
    x = torch.cat([h.mean((2, 3))[:, :, None], h.flatten(2)], 2) + pool.positional_embedding
    q, k, v = (pool.qkv_proj.weight[8 * i : 8 * i + 8, :, 0] @ x + pool.qkv_proj.bias[8 * i : 8 * i + 8, None]
               for i in range(3))  # fmt: skip
    heads = []
    for rows in (slice(0, 4), slice(4, 8)):
        weight = torch.einsum("bc,bcl->bl", q[:, rows, 0], k[:, rows]).mul(4**-0.5).softmax(1)
        heads.append(torch.einsum("bl,bcl->bc", weight, v[:, rows]))
    known = torch.cat(heads, 1) @ pool.c_proj.weight[:, :, 0].T + pool.c_proj.bias
    torch.testing.assert_close(pool(h), known, rtol=1e-5, atol=1e-5)


def test_sizes_are_those_of_the_papers() -> None:
    """ADM-G is 608 M of which ADM is 554 M (Table 10); LDM-8-G 506 M of which LDM-8 is 395 M."""
    adm = millions(in_channels=3, n_classes=1000, latent_size=256, width=128, multipliers=[1, 1, 2, 2, 4, 4], blocks=2,
                   attention_factors=[8, 16, 32], head_channels=64)  # fmt: skip
    assert adm == pytest.approx(608 - 554, abs=0.5)
    node: Any = OmegaConf.load(CONF / "guidance" / "classifier_ldm8.yaml").classifier.network
    options = {k: v for k, v in OmegaConf.to_container(node).items() if not k.startswith("_")}  # type: ignore[union-attr]
    assert millions(in_channels=4, n_classes=1000, latent_size=32, **options) == pytest.approx(506 - 395, abs=1)


@pytest.mark.parametrize("pool", ["attention", "mean"])
def test_logits_depend_on_latent_and_time(pool: Any) -> None:
    torch.manual_seed(0)
    net = NoisyClassifier(2, 5, 4, width=32, multipliers=[1, 2], blocks=1, attention_factors=[2], heads=2, pool=pool)
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    z, t_B = torch.randn(3, 2, 4, 4, requires_grad=True), torch.tensor([0, 500, 999])
    logits = net(z, t_B)
    assert logits.shape == (3, 5) and not torch.allclose(logits, net(z, t_B.flip(0)), atol=1e-4)
    slope = torch.autograd.grad(logits[1, 2], z)[0]
    assert slope[1].any() and not slope[0].any() and not slope[2].any()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"width": 33}, r"guidance.classifier.network.width=33 .*multiple of 32"),
        ({"attention_factors": [4]}, r"guidance.classifier.network.attention_factors=\[4\]: no level"),
        ({"head_channels": 32}, r"guidance.classifier.network needs exactly one of heads"),
        ({"dropout": 1.0}, r"guidance.classifier.network.dropout"),
        ({"multipliers": [1, 1, 1, 1]}, r"guidance.classifier.network.multipliers has 4 levels.*at most 3"),
    ],
)
def test_errors_name_the_option(options: dict[str, Any], said: str) -> None:
    plain = {"width": 32, "multipliers": [1, 2], "blocks": 1, "attention_factors": [2], "heads": 2}
    with pytest.raises(ConfigError, match=said), build.shapes_only():
        NoisyClassifier(2, 5, 4, **{**plain, **options})  # type: ignore[arg-type]
