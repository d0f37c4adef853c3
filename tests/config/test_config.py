"""The three nets: what is mistyped is said in one line with the path, what is allowed and the nearest name, before anything is built."""

import functools
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from whole_commands import run_here

from ldmlab import build
from ldmlab.config.compose import CONF, ROOT, group_options, groups, load, misfit
from ldmlab.data.fields import label
from ldmlab.errors import ConfigError, DataError, UserError

PICTURES = {f"data={name}": ["data.root=/nowhere"] for name in group_options("data") if name != "shapes"}
PICTURES["data=lsun"] += ["data.train=list.txt", "data.val=list.txt"]


@pytest.mark.parametrize(
    "words,parts",
    [
        ("ae=kl_f7", ["ae=kl_f7", "Did you mean 'kl_f8'", "vq_f32"]),
        ("ae.wieght=1", ["ae.wieght", "Did you mean 'ae.regulariser.weight'", "regulariser, loss"]),
        ("+ae.wieght=1", ["ae.wieght", "Did you mean 'ae.regulariser.weight'"]),
        ("+ae.regulariser.wieght=1", ["ae.regulariser.wieght", "Did you mean 'weight'", "KL takes: weight"]),
        (
            "ae=kl_f8 ae.regulariser.weight=big",
            ["ae.regulariser.weight must be a number", "'big'", "conf/ae/regulariser/kl.yaml"],
        ),
        ("seed=a", ["seed must be a whole number", "'a'"]),
        ("ae.fit.images=1.5", ["ae.fit.images must be a whole number", "1.5"]),
        ("ldm.fit.image=3", ["ldm.fit.image", "Did you mean 'images'"]),
        ("ldm.fit.lr=-1", ["ldm.fit.lr must be greater than 0", "-1"]),
        ("ldm.fit.snapshots=[2]", ["ldm.fit.snapshots must be between 0 and 1", "2"]),
        ("ldm.fit.betas=[0.9]", ["ldm.fit.betas must be two numbers", "[0.9]"]),
        ("ldm.network.widht=3", ["ldm.network.widht", "Did you mean 'width'", "multipliers"]),
        ("+ldm.network.context_dim=3", ["ldm.network.context_dim: no such option"]),
        ("+sweeep=1", ["sweeep: no such option"]),
        ("sweeps=compression", ["needs -m", "python src/train.py -m sweeps=compression"]),
        ("sweeps=compresion", ["Did you mean 'compression'"]),
        ("aee=kl_f8", ["aee: no such option", "Did you mean 'ae'"]),
        ("ae/loss=pixl", ["ae/loss=pixl", "Did you mean 'pixel'"]),
        ("ae.latent_scale.mode=globl", ["ae.latent_scale.mode must be one of", "Did you mean 'global'"]),
        ("sampler.step=4", ["sampler.step", "Did you mean 'steps'", "eta"]),
        ("sampler.grid=leading", ["sampler.grid must be one of trailing, official", "'leading'"]),
        ("runtime.proceses=2", ["Did you mean 'processes'"]),
        ("data=folder", ["data.root is not set", "data.root="]),
        ("nonsense", ["nonsense", "path=value"]),
        ("ae=identity ae.fit.images=3", ["ae.fit.images", "ae.fit is null here"]),
        ("objective.schedule.beta_strat=1", ["objective.schedule.beta_strat", "Did you mean 'beta_start'"]),
        (
            "objective=v_cosine ++objective.times.mean=0",
            ["objective.times must be a part with a _target_", "{'mean': 0}"],
        ),
    ],
)
def test_misspelling_is_named(words: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(words.split())
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "group", ["ae", "ae/regulariser", "ae/loss", "data", "ldm", "cond", "objective", "sampler", "eval"]
)
def test_wrong_key_in_any_yaml_is_named_with_file_and_line(
    group: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shipped file with one more key, in a copy of conf/."""
    import shutil

    from ldmlab.config import search

    shutil.copytree(CONF, tmp_path / "conf")
    chosen = {"ae": "kl_f8", "ae/regulariser": "kl", "ae/loss": "kl_lpips_gan", "data": "shapes", "ldm": "unet_tiny",
              "cond": "class_label", "objective": "eps_linear", "sampler": "ddim", "eval": "shapes"}[group]  # fmt: skip
    file = tmp_path / "conf" / group / f"{chosen}.yaml"
    file.write_text(file.read_text().rstrip("\n") + "\nwrnog_key: 3\n")
    line = file.read_text().splitlines().index("wrnog_key: 3") + 1
    monkeypatch.setattr(search, "CONF", tmp_path / "conf")
    monkeypatch.setattr(search, "ROOT", tmp_path)
    words = [f"{group}={chosen}"] if "/" not in group else ["ae=kl_f8"]
    with pytest.raises(ConfigError, match="wrnog_key: no such option") as caught:
        load(words)
    assert f"conf/{group}/{chosen}.yaml, line {line}" in str(caught.value)


def options() -> list[list[str]]:
    """Every option of every group alone; every first stage with a denoiser and a condition, every kind of these with some."""
    alone = [
        [f"{group}={name}"] for group in groups() if group not in ("sweeps", "debug") for name in group_options(group)
    ]
    nested = [["ae=kl_f8", f"{sub.relative_to(CONF)}={name}"] for sub in sorted((CONF / "ae").rglob("*")) if sub.is_dir()
              for name in group_options(str(sub.relative_to(CONF)))]  # fmt: skip
    conds, whole = (
        group_options("cond"),
        ("identity", "kl_f8", "vq_f32"),
    )  # these with every condition, the others in turn

    def with_conditions(first_stages: Sequence[str]) -> list[tuple[str, str]]:
        return [
            (a, c) for i, a in enumerate(first_stages) for j, c in enumerate(conds) if a in whole or i % len(conds) == j
        ]

    pairs = [  # one yaml of each kind of denoiser; the others differ in numbers
        *((a, "unet_base", c) for a, c in with_conditions(group_options("ae"))),
        *((a, "dit_b_2", c) for a, c in with_conditions(whole)),
    ]
    crossed = [[f"ae={a}", f"ldm={n}", f"cond={c}", "data.resolution=256"] for a, n, c in pairs]
    debug = [[f"ae={a}", f"cond={c}", "debug=tiny"] for a, c in with_conditions(group_options("ae"))]
    found = [*alone, *nested, *crossed, *debug]
    assert len(found) > 60
    return found


@functools.cache
def text_encoder(kind: str) -> Path:
    """A folder that says what an encoder's would: its width; a file of weights that nobody reads."""
    folder = Path(tempfile.mkdtemp(prefix=kind))
    (folder / "config.json").write_text(
        json.dumps({"model_type": {"clip": "clip_text_model"}.get(kind, kind), "hidden_size": 32, "d_model": 32})
    )
    save_file({"weight": torch.zeros(1)}, folder / "model.safetensors")
    return folder


def with_files(words: list[str]) -> list[str]:
    """Options that a file must be given to."""
    more = [file for option, files in PICTURES.items() if option in words for file in files]
    if "eval=squeezenet" in words:
        more.append("eval.extractor.weights=/nowhere.pth")
    if any("perceptual=squeezenet" in w for w in words):
        more.append("ae.loss.perceptual.weights=/nowhere.pth")
    if any(word.startswith("experiment=photos64") for word in words):
        more += ["data.root=/nowhere", "eval.extractor.weights=/nowhere.pth"]
    if any(word.startswith("experiment=overfit_") for word in words):
        more.append("data.root=/nowhere")
    if any(word.startswith("experiment=compression_") for word in words):
        more += ["seeds.first_stage=1", "seeds.denoiser=1"]  # one run of the study
        if {"experiment=compression_shapes64", "experiment=compression_small"}.isdisjoint(words):
            more.append("data.root=/nowhere")
        if not any(word.endswith(("shapes64", "small", "imagenet")) for word in words):
            more.append("eval.extractor.weights=/nowhere.pth")
    if {"data=openimages_imagenet", "data=laion_coco"} & set(words):
        more = ["data.train.root=/nowhere", "data.val.root=/nowhere"]
    if "guidance=image" in words:
        more.append("guidance.image.file=/nowhere.png")
    for word in words:
        if word in ("cond=text_clip", "cond=text_t5"):
            more.append(f"cond.conditioner.model={text_encoder(word.removeprefix('cond=text_'))}")
    if "ae/regulariser=none" in words:
        return ["ae=identity", "ae/regulariser=none"]
    channels = {
        "fsq_2": "kl_f2_quick",
        "fsq_3": "vq_f4",
        "fsq_3_1024": "kl_f4_quick",
        "fsq_8": "kl_f16_quick",
        "fsq_16": "kl_f32_quick",
    }
    for word in words:  # as many channels as numbers of levels
        if (name := word.removeprefix("ae/regulariser=")) in channels:
            return [f"ae={channels[name]}", word]
        if word.startswith("ae/network="):
            first = {"residual": "kl_f8_quick", "pca": "pca_f8", "identity": "identity"}.get(
                word.partition("=")[2], "kl_f8"
            )
            return [f"ae={first}", word]
    words = [
        f"eval.metrics=[{w.partition('=')[2]}]" if w.startswith("metric=") else w for w in words
    ]  # not a choice of one
    if any("quick_gan" in w for w in words):
        more.append("ae.loss.perceptual.weights=/nowhere.pth")
    return [*words, *more]


@pytest.mark.parametrize("words", options(), ids=" ".join)
def test_every_option_composes_completes_and_instantiates(words: list[str]) -> None:
    words = with_files(words)
    cfg, _ = load(words)
    with torch.device("meta"):
        ae = build.autoencoder(cfg)
        c, h, _ = ae.latent_shape(max(256, cfg.data.resolution) if "debug=tiny" not in words else cfg.data.resolution)

        class Data:
            class_names = ("a", "b")
            resolution = h * ae.f
            fields, declared = ("label",), (label(2),)

        denoiser = build.denoiser(cfg, ae, Data())
        assert sum(p.numel() for p in denoiser.parameters()) > 1e5
    assert c == ae.c
    objective, sampler = build.objective(cfg), build.sampler(cfg)
    assert sampler.times(objective.schedule.T)[0] <= objective.schedule.T - 1
    text = OmegaConf.to_yaml(cfg)
    assert "???" not in text and OmegaConf.to_yaml(load(words).cfg) == text
    if cfg.data["_target_"] == build.SHAPES:
        assert build.dataset(cfg, "val", None).resolution == cfg.data.resolution


def test_completion_writes_every_default_out() -> None:
    cfg, _ = load(["ae=kl_f8"])
    assert cfg.objective.schedule.T == 1000
    assert cfg.ae.loss.discriminator.width == 64
    assert "context_dim" not in cfg.ldm.network  # derived, not an option


def test_debug_shrinks_but_the_command_line_wins() -> None:
    cfg, _ = load(["ae=kl_f8", "ldm=unet_base", "debug=tiny", "ldm.network.width=64"])
    assert cfg.ldm.network.width == 64 and cfg.ae.network.width == 32 and cfg.ae.network.multipliers == [1, 2, 4, 4]
    assert load(["ae=identity", "debug=tiny"]).cfg.ae.loss is None


def test_type_words() -> None:
    assert misfit(3, float) is None and misfit(True, int) == "a whole number" and misfit(None, int | None) is None
    assert misfit(1.5, int | None) == "a whole number or null"
    assert misfit([1, 2.5], list[int]) == "a list, each a whole number"


CASES = {
    "data.resolution=100 ae=kl_f8": ["data.resolution=100", "f=8", "96 or 104"],
    "data=folder data.root={flat} cond=class_label": ["cond=", "label", "cond=none"],
    "data=folder data.root={missing}": ["data.root", "missing"],
    "data=folder data.root={empty}": ["data.root", "empty"],
    "ae=kl_f32 data.resolution=32": ["ldm.network.multipliers", "1x1"],
    "sampler.guidance=2 cond=none": ["sampler.guidance=2", "sampler.guidance=1"],
    "sampler.guidance=2 cond.drop=0": ["cond.drop"],
    "cond.label=banana": ["cond.label", "banana"],
    "eval.at=[0.31]": ["eval.at=0.31", "ldm.fit.snapshots"],
    "eval.metrics=[fid,kidd]": ["eval.metrics", "kidd", "kid"],
    "ldm.network.attention_factors=[8]": ["ldm.network.attention_factors"],
    "ldm.network.width=40": ["ldm.network.width=40"],
    "runtime.processes=3": ["batch_size", "3 processes"],
    "sampler.steps=2000": ["sampler.steps"],
}


@pytest.mark.parametrize("words", CASES)
def test_parts_that_do_not_fit(words: str, tmp_path: Path) -> None:
    from ldmlab.pipeline.run import prepare

    resolution = [] if "data.resolution" in words else ["data.resolution=32"]
    with pytest.raises((ConfigError, DataError)) as caught:
        prepare(load([*_filled(words, tmp_path), f"store={tmp_path / 'store'}", *resolution]))
    for part in CASES[words]:
        assert part in str(caught.value), caught.value


def _filled(words: str, folder: Path) -> list[str]:
    from PIL import Image

    (folder / "empty").mkdir()
    (folder / "flat").mkdir()
    for i in range(40):
        Image.new("RGB", (40, 40), (i, 0, 0)).save(folder / "flat" / f"{i}.png")
    return [w.format(flat=folder / "flat", missing=folder / "missing", empty=folder / "empty") for w in words.split()]


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    ["ae=kl_f7", "ae.wieght=1", "+ae.regulariser.wieght=1", "seed=a", "data.resolution=100 ae=kl_f8", "sweeps=compression",
     "data=folder data.root={missing}", "data=folder data.root={empty}", "data=folder data.root={flat} cond=class_label",
     "ldm.network.heads=none"],
)  # fmt: skip
def test_the_command_says_it_in_one_line_with_exit_code_1(words: str, tmp_path: Path) -> None:
    """(How a start says it: tests/config/test_cli.py.)"""
    began = time.monotonic()
    done = run_here("train", [*_filled(words, tmp_path), f"store={tmp_path / 'store'}"])
    seconds = time.monotonic() - began
    assert done.returncode == 1
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert lines[-1].startswith("error: ") and done.stderr.count("error: ") == 1, done.stderr
    assert "Traceback" not in done.stderr  # (reading a folder for the first time says that it does)
    assert seconds < 30  # 5 s on a quiet machine (docs/measurements.md); tests share two cores


def test_user_errors_are_one_family() -> None:
    assert issubclass(ConfigError, UserError) and issubclass(DataError, UserError)


def test_a_folder_at_the_root_is_no_group(tmp_path: Path) -> None:
    """The default store lies beside conf/; as a Hydra group it would take `store=…` away."""
    made = ROOT / "store"
    existed = made.exists()
    made.mkdir(exist_ok=True)
    try:
        assert load([f"store={tmp_path}"]).cfg.store == str(tmp_path)
    finally:
        if not existed:
            made.rmdir()


@pytest.mark.parametrize(
    "words",
    [["ae/loss/perceptual=squeezenet", "ae.loss.perceptual.weights=file.pth"], ["ae/loss/discriminator=patchgan_2"]],
)
def test_a_part_that_was_asked_for_is_not_taken_away_again(words: list[str]) -> None:
    """`where_present` of debug=tiny and of experiments gives way to words on the command line, groups included."""
    for preset in (["debug=tiny"], ["experiment=photos64", "data.root=here", "eval.extractor.weights=file.pth"]):
        cfg = load([*preset, "ae=kl_f4", *words]).cfg
        assert cfg.ae.loss["perceptual" if "perceptual" in words[0] else "discriminator"] is not None
