"""Every row of Table 8 is a yaml: f, c, |Z|, parameters; and the matched pairs differ in the regulariser alone."""

import pytest

from ldmlab import build
from ldmlab.autoencoders.autoencoder import Autoencoder
from ldmlab.config.compose import load
from ldmlab.pipeline.costs import parameters_of
from ldmlab.pipeline.stage import plain

# f, c, |Z|, million parameters of the official network without its loss (None: network never published)
TABLE_8 = {
    "kl_f2": (2, 2, None, None), "kl_f4": (4, 3, None, 55.31), "kl_f8": (8, 4, None, 83.65), "kl_f16": (16, 16, None, 69.61),
    "kl_f16_c8": (16, 8, None, None), "kl_f32": (32, 64, None, 103.88), "kl_f32_c16": (32, 16, None, None),
    "vq_f2": (2, 2, 2048, None), "vq_f2_n64": (2, 2, 64, None), "vq_f4": (4, 3, 8192, 55.32),
    "vq_f4_noattn": (4, 3, 8192, 53.22), "vq_f4_n256": (4, 3, 256, None), "vq_f8": (8, 4, 16384, 67.72),
    "vq_f8_n256": (8, 4, 256, 67.65), "vq_f16": (16, 8, 16384, 69.59), "vq_f32": (32, 16, 16384, None),
}  # fmt: skip


def made(name: str) -> Autoencoder:
    with build.shapes_only():
        return build.autoencoder(load([f"ae={name}"]).cfg)


@pytest.mark.parametrize("name", TABLE_8)
def test_rows_of_table_8(name: str) -> None:
    f, c, codes, millions = TABLE_8[name]
    ae = made(name)
    assert (ae.f, ae.c, getattr(ae.regulariser, "codes", None)) == (f, c, codes)
    if millions is not None:
        assert round(parameters_of(ae) / 1e6, 2) == millions


def test_networks_without_level_attention_are_the_round_numbers() -> None:
    """64.4 M and 93.4 M, sometimes given for kl-f16 and kl-f32, are these networks without attention at their levels."""
    for name, millions in (("kl_f16", 64.4), ("kl_f32", 93.4)):
        with build.shapes_only():
            ae = build.autoencoder(load([f"ae={name}", "ae.network.attention_factors=[]"]).cfg)
        assert round(parameters_of(ae) / 1e6, 1) == millions


@pytest.mark.parametrize("f", [2, 4, 8, 16, 32])
def test_matched_pairs_differ_in_the_regulariser_alone(f: int) -> None:
    kl, vq = (plain(load([f"ae={name}_f{f}_matched"]).cfg.ae) for name in ("kl", "vq"))
    regularisers = {side.pop("regulariser")["_target_"].rpartition(".")[2] for side in (kl, vq)}
    reductions = {side["loss"].pop("reduction") for side in (kl, vq)}
    assert regularisers == {"KL", "VQ"} and reductions == {"sum", "mean"}
    assert kl == vq
    assert made(f"kl_f{f}_matched").c == made(f"vq_f{f}_matched").c


def test_regularisers_beyond_the_paper() -> None:
    with build.shapes_only():
        assert build.autoencoder(load(["ae=vq_f8", "ae/regulariser=fsq"]).cfg).regulariser.codes == 1000
        assert build.autoencoder(load(["ae=vq_f4", "ae/regulariser=fsq_3"]).cfg).regulariser.codes == 240
        assert build.autoencoder(load(["ae=vq_f4", "ae/regulariser=vq_ema"]).cfg).regulariser.codes == 8192
