"""The linear and quick first stages as they are composed: Table 8's f and c, sizes, and what an experiment may change."""

from pathlib import Path

import pytest

from ldmlab import build
from ldmlab.config.compose import load
from ldmlab.errors import ConfigError
from ldmlab.pipeline.costs import parameters_of

TABLE_8 = {2: 2, 4: 3, 8: 4, 16: 8, 32: 16}
PHOTOS = ["experiment=photos64", "data.root=/nowhere", "eval.extractor.weights=/nowhere.pth"]


def made(*words: str):
    cfg = load(list(words)).cfg
    with build.shapes_only():
        return cfg, build.autoencoder(cfg)


@pytest.mark.parametrize("f", TABLE_8)
@pytest.mark.parametrize("kind", ["pca_f{}", "kl_f{}_quick", "vq_f{}_quick"])
def test_every_f_has_table_8s_channels(kind: str, f: int) -> None:
    cfg, ae = made(f"ae={kind.format(f)}")
    assert (ae.f, ae.c) == (f, TABLE_8[f])
    assert (cfg.ae.fit is None) == (cfg.ae.loss is None) == kind.startswith("pca")
    if "quick" in kind:
        assert parameters_of(ae) <= 2_000_000 and cfg.ae.fit.images <= 8_000


@pytest.mark.parametrize("f", TABLE_8)
def test_quick_kl_and_vq_have_one_network(f: int) -> None:
    (kl, _), (vq, _) = made(f"ae=kl_f{f}_quick"), made(f"ae=vq_f{f}_quick")
    different = {key for key in kl.ae.network if kl.ae.network[key] != vq.ae.network[key]}
    assert different == {"whiten"} and kl.ae.fit == vq.ae.fit
    assert vq.ae.regulariser.codes == 1024 and vq.ae.regulariser.start == "kmeans"


@pytest.mark.parametrize(
    "words",
    [
        ["ae=kl_f2_quick", "ae/regulariser=fsq_2"],
        ["ae=kl_f4_quick", "ae/regulariser=fsq_3_1024"],
        ["ae=kl_f8_quick", "ae/regulariser=fsq"],
        ["ae=kl_f16_quick", "ae/regulariser=fsq_8"],
        ["ae=kl_f32_quick", "ae/regulariser=fsq_16"],
        ["ae=vq_f4_quick", "ae/regulariser=vq_ema_quick"],
        ["ae=pca_f4", "ae/regulariser=kl_quick"],
        ["ae=pca_f8", "ae/regulariser=fsq"],
        ["ae=pca_f8", "ae/regulariser=vq_quick", "ae.network.whiten=false"],
        ["ae=pca_f16", "ae.network.c=300"],
    ],
    ids=" ".join,
)
def test_regularisers_are_exchangeable(words: list[str]) -> None:
    _, ae = made(*words)
    assert ae.regulariser.channels_in(ae.c) in (ae.c, 2 * ae.c)


def test_an_experiment_leaves_a_recipe_alone_and_small_networks_of_the_paper_not() -> None:
    for name in ("kl_f4_quick", "vq_f8_quick", "pca_f4"):
        alone, among = (load([f"ae={name}", *more]).cfg.ae for more in ([], PHOTOS))
        assert alone == among
    assert load(["ae=kl_f4", *PHOTOS]).cfg.ae.network.width == 16
    assert load(["ae=kl_f4_quick", *PHOTOS, "ae.fit.images=100"]).cfg.ae.fit.images == 100
    assert load(["ae=kl_f4_quick", "debug=tiny"]).cfg.ae.fit.images == 64


def test_the_size_that_a_whole_image_path_sees_follows_a_preset() -> None:
    """debug=tiny sets data.resolution after the recipe wrote ${data.resolution}."""
    cfg = load(["debug=tiny", "ae=kl_f16_quick"]).cfg
    assert cfg.ae.network.image_size == cfg.data.resolution == 64
    assert load(["debug=tiny", "ae=kl_f16_quick", "data.resolution=32"]).cfg.ae.network.image_size == 32


WHOLE = ["debug=tiny", "ae=kl_f16_quick", "until=autoencoder", "eval=none", "dry_run=true"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ae.network.image_size=128"], r"data\.resolution is 64\. Set ae\.network\.image_size=64, or data\.resolution=128"),
        (["data.resolution=128", "ae.tile=64"], r"ae\.tile=64: this first stage sees whole images .* Set ae\.tile=null"),
        (["data.train_images=50"], r"8x4x4 latent needs at least 65 training images, and there are 50\. Set ae\.network\.image_size=null"),
        (["ae.network.image_size=null"], r"ae\.network\.mirror=true needs .* whole images"),
        (["data.resolution=72"], r"not a multiple of f=16\. Set one: 64 or 80"),
    ],
)  # fmt: skip
def test_what_a_whole_image_path_cannot_take_is_found_by_a_dry_run(words: list[str], said: str, tmp_path: Path) -> None:
    from ldmlab.pipeline.run import execute

    with pytest.raises(ConfigError, match=said):
        execute(load([*WHOLE, *words, f"store={tmp_path}"]), "")
