"""The paper's networks by name: their sizes, and their options and budgets against Tables 12 to 15."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from ldmlab import build
from ldmlab.config.compose import CONF, group_options
from ldmlab.networks.unet import UNet


class Row(NamedTuple):
    """What a network is counted with, and what must come out."""

    c: int  # latent channels
    millions: float  # parameters of the UNet alone; paper_tables.yaml, counted_millions: another program's count
    where: str  # that row's name
    tokens: int | None = None  # features of a token
    concat: int = 0  # channels of a concatenated condition
    also: float = 0.0  # millions that the row counts beside the UNet
    table: str = ""  # the paper's table,
    row: tuple[str, str] = ("", "")  # and what names the row in it


FACES = "CelebA/FFHQ/Bedrooms LDM-4"
INPAINT = "inpainting / semantic base UNet"
LAYOUT_TRANSFORMER = (
    58.858496  # 16 layers of 512, 92 places, vocabulary and logits of 8192 (Table 17; x_transformer.py)
)
VQ_F4 = 55.32

NETWORKS = {
    "celebahq_f4": Row(3, 274.06, FACES, table="table_12", row=("dataset", "CelebA-HQ")),
    "ffhq_f4": Row(3, 274.06, FACES, table="table_12", row=("dataset", "FFHQ")),
    "bedrooms_f4": Row(3, 274.06, FACES, table="table_12", row=("dataset", "LSUN-Bedrooms")),
    "churches_f8": Row(
        4, 294.97, "Churches released config (scale-shift norm, resblock up/down)",
        table="table_12", row=("dataset", "LSUN-Churches"),
    ),
    "imagenet_f1": Row(3, 396.84, "ImageNet LDM-1 (add 0.51 for the class embedding)", 512, table="table_13", row=("model", "LDM-1")),
    "imagenet_f2": Row(2, 390.89, "ImageNet LDM-2", 512, table="table_13", row=("model", "LDM-2")),
    "imagenet_f4": Row(3, 400.92, "ImageNet LDM-4", 512, table="table_13", row=("model", "LDM-4")),
    "imagenet_f8": Row(4, 394.98, "ImageNet LDM-8", 512, table="table_13", row=("model", "LDM-8")),
    "imagenet_f16": Row(8, 395.00, "ImageNet LDM-16", 512, table="table_13", row=("model", "LDM-16")),
    "imagenet_f32": Row(32, 395.11, "ImageNet LDM-32 (c=32)", 512, table="table_13", row=("model", "LDM-32")),
    "celeba_f1": Row(3, 270.46, "CelebA LDM-1", table="table_14", row=("model", "LDM-1")),
    "celeba_f2": Row(2, 264.51, "CelebA LDM-2", table="table_14", row=("model", "LDM-2")),
    "celeba_f4": Row(3, 274.06, FACES, table="table_14", row=("model", "LDM-4")),
    "celeba_f8": Row(4, 257.73, "CelebA LDM-8", table="table_14", row=("model", "LDM-8")),
    "celeba_f16": Row(8, 257.75, "CelebA LDM-16", table="table_14", row=("model", "LDM-16")),
    "celeba_f32": Row(32, 257.86, "CelebA LDM-32 (c=32)", table="table_14", row=("model", "LDM-32")),
    "txt2img_f8": Row(4, 872.30, "txt2img UNet", 1280, table="table_15", row=("task", "text-to-image")),
    "layout_openimages_f4": Row(
        3, 305.14, "layout OpenImages UNet + tau + logits head", 512, also=LAYOUT_TRANSFORMER,
        table="table_15", row=("dataset", "OpenImages"),
    ),
    "layout_coco_f8": Row(4, 312.24, "layout COCO UNet only", 512, table="table_15", row=("dataset", "COCO")),
    "sr_f4": Row(3, 113.62, "SR UNet", concat=3, table="table_15", row=("task", "super-resolution")),
    "inpaint_f4": Row(3, 215.23, INPAINT, concat=4, table="table_15", row=("task", "inpainting")),
    "inpaint_f4_big": Row(3, 387.25, "inpainting big UNet", concat=4),
    "semantic_f8": Row(4, 215.23, INPAINT, concat=3, table="table_15", row=("task", "semantic-map-to-image")),
    "semantic_f4": Row(3, 215.23, INPAINT, concat=3),
}  # fmt: skip
OURS = {
    "unet_tiny": 2_649_412,
    "unet_small": 37_821_892,
    "unet_base": 394_984_196,
    "unet_study": 784_804,
}  # with 4 latent channels and tokens of 512


@functools.cache
def options(name: str) -> Any:
    """conf/ldm/<name>.yaml with what it builds on, and nothing of the other groups: that is quick."""
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        return compose(f"ldm/{name}").ldm


def network(name: str, c: int, concat: int = 0, tokens: int | None = None) -> UNet:
    with build.shapes_only():
        return build.part(  # type: ignore[no-any-return]
            options(name).network, in_channels=c + concat, out_channels=c, context_dim=tokens,
            vector_dim=None, latent_size=None,
        )  # fmt: skip


def count(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_size_is_the_papers(name: str) -> None:
    row = NETWORKS[name]
    found = count(network(name, row.c, row.concat, row.tokens))
    assert round(found / 1e6 + row.also, 2) == row.millions


@pytest.mark.parametrize("name", OURS)
def test_size_of_our_own(name: str) -> None:
    assert count(network(name, 4, tokens=512)) == OURS[name]


def test_every_unet_is_in_one_of_the_two_tables() -> None:
    assert {n for n in group_options("ldm") if not n.startswith("dit_") and n != "gaussian"} == {*NETWORKS, *OURS}


def test_a_released_variant_is_an_option_away() -> None:
    """Table 18's churches: 256 M (docs/paper.md#sizes-of-the-networks)."""
    node = OmegaConf.merge(options("churches_f8").network, {"scale_shift_norm": False, "resblock_updown": False})
    with build.shapes_only():
        net = build.part(node, in_channels=4, out_channels=4)
    assert round(count(net) / 1e6, 2) == 256.40


def reference() -> dict[str, Any]:
    return yaml.safe_load(Path(__file__).with_name("paper_tables.yaml").read_text())  # type: ignore[no-any-return]


def test_counts_above_are_those_of_the_reference_file() -> None:
    counted = reference()["counted_millions"]
    assert {r.where: r.millions for r in NETWORKS.values()}.items() <= counted.items()
    assert NETWORKS["sr_f4"].millions + VQ_F4 == pytest.approx(counted["SR UNet + vq-f4 first stage"], abs=0.011)


THOUSANDS = {"k": 1_000, "K": 1_000, "M": 1_000_000}


def test_options_and_budgets_are_those_of_the_tables() -> None:
    tables = reference()["tables"]
    for name, ours in NETWORKS.items():
        if not ours.table:
            continue
        table = tables[ours.table]
        found = [r for r in table["rows"] if r.get(ours.row[0]) == ours.row[1]]
        assert len(found) == 1, name
        printed = {**table["common"], **found[0]}
        net, fit = options(name).network, options(name).fit
        assert net.width == printed["channels"] and list(net.multipliers) == printed["channel_mult"], name
        assert net.blocks == printed["depth"] and net.transformer_depth == (printed.get("transformer_depth") or 1), name
        assert net.dropout == (printed.get("dropout") or 0), name
        steps = float(printed["iterations"][:-1]) * THOUSANDS[printed["iterations"][-1]]
        assert fit.batch_size == printed["batch"] and fit.images == round(steps * printed["batch"]), name
        assert fit.lr == pytest.approx(printed["lr"]), name
        sizes = printed.get("attention_resolutions") or printed.get("ca_resolutions")
        latent = (printed["z_shape"] or [32])[0]  # churches: a dash in print, 32x32x4 in the config
        if sizes is not None:
            assert sorted(latent // f for f in net.attention_factors) == sorted(sizes), name
