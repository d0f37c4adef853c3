"""guidance=…: addresses hold without it, change with it, and what cannot be is said in one line before anything is built."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from ldmlab.config.compose import load
from ldmlab.errors import ConfigError
from ldmlab.pipeline.plan import Plan
from ldmlab.pipeline.run import prepare
from ldmlab.pipeline.weak_model import WeakModel
from ldmlab.training.loop import images_at

BASE = ["data.train_images=64", "data.val_images=16", "data.cached=false", "ldm.fit.snapshots=[0.5]"]
HALF = ["guidance=autoguidance", "guidance.auto.snapshot=0.5"]


def plan_of(*words: str, root: Path) -> Plan:
    return prepare(load([*BASE, f"store={root}", *words]))


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "a picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)).save(path)
    return f"guidance.image.file='{path}'"


@pytest.mark.parametrize(
    ("words", "denoiser", "samples", "scores", "run"),  # they change with the options that decide a result, or a stage's version
    [
        ("sampler=ddim", "48c760628240", "4fdf6b71cfc1", "e57bb85b2811", "9d13cbb60a00"),
        ("sampler=heun", "48c760628240", "c6a12994b904", "1a5d2d23047d", "308d71b20b21"),
        ("sampler=heun sampler.guidance=2 sampler.guidance_interval=[0.3,5]", "48c760628240", "2844a1e09449", "aab36d028949",
         "2b4f233aa9b5"),
        ("cond=none ae=identity", "b477d53979d5", "e883b215010c", "0b01f3a4a1e6", "eb65a1528dc7"),
        ("ldm=dit_s_2 cond=class_vector ae=vq_f4 until=samples", "8d8e37345714", "2e8b32afbda1", "28066f8d163b",
         "c2c933bb1e9d"),
    ],
)  # fmt: skip
def test_without_guidance_ids_stay(
    words: str, denoiser: str, samples: str, scores: str, run: str, tmp_path: Path
) -> None:
    plan = plan_of(*words.split(), root=tmp_path)
    found = (*(plan.named(name).address.id for name in ("denoiser", "samples", "scores")), plan.run.id)
    assert found == (denoiser, samples, scores, run)
    assert not plan.has("noisy_classifier") and not plan.has("weak_model")


def test_what_guidance_changes(picture: str, tmp_path: Path) -> None:
    def ids(*words: str) -> tuple[str, str, str]:
        plan = plan_of(*words, root=tmp_path)
        return (
            plan.address("denoiser").id,
            plan.address("noisy_classifier").id if plan.has("noisy_classifier") else "",
            plan.address("samples").id,
        )

    plain, classifier, image = ids(), ["guidance=classifier"], ["guidance=image", picture]
    every = [HALF, classifier, image, ["guidance=[classifier,autoguidance]", HALF[1]], [*image, "guidance/transform=mask"],
             [*image, "guidance/transform=none"], [*HALF, "guidance.auto.scale=3"], [*classifier, "guidance.classifier.scale=3"],
             [*image, "guidance.image.scale=3"], ["sampler=heun"], ["sampler=heun", "sampler.s_churn=5"]]  # fmt: skip
    found = [plain, *(ids(*words) for words in every)]
    assert len({samples for _, _, samples in found}) == len(found) and {d for d, _, _ in found} == {plain[0]}
    trained = ids(*classifier)[1]
    same = ["sampler.steps=7", "ldm.fit.lr=3e-4", "ldm.network.dropout=0.1", "guidance.classifier.scale=2", "objective.loss=l1",
            "cond.drop=0.2"]  # fmt: skip
    assert {ids(*classifier, word)[1] for word in same} == {trained}
    other = ["guidance.classifier.fit.lr=3e-4", "guidance.classifier.network.pool=mean", "seed=1", "objective/times=logit_normal",
             "objective=v_cosine", "ae.regulariser.weight=1e-5"]  # fmt: skip
    assert trained not in {ids(*classifier, word)[1] for word in other}


def test_the_plan_says_what_guides_and_counts_it(picture: str, tmp_path: Path) -> None:
    words = ["guidance=[classifier,autoguidance,image]", HALF[1], picture, "until=samples"]
    rows = plan_of(*words, root=tmp_path).rows
    assert [stage.name for stage, _ in rows[-2:]] == ["noisy_classifier", "samples"]
    assert "50 (100 evaluations) · guidance 1 · autoguidance 2 (snapshot 0.5, " in rows[-1][1].what
    assert "· classifier 1 · image 1 (a picture.png)" in rows[-1][1].what
    assert "noisy_classifier" not in [
        stage.name for stage, _ in plan_of(*words[:-1], "until=denoiser", root=tmp_path).rows
    ]


@pytest.mark.slow
def test_a_dry_run_counts_what_guidance_costs(picture: str, tmp_path: Path) -> None:
    def flops(*words: str) -> float:
        return (
            plan_of(
                "dry_run=true",
                "until=samples",
                "ldm.network.multipliers=[1]",
                "ldm.network.attention_factors=[]",
                *words,
                root=tmp_path,
            )
            .rows[-1][1]
            .flops
        )

    plain, auto, image = flops(), flops(*HALF), flops("guidance=image", picture)
    assert plain < auto < 2 * plain < image  # decoding once does not double, and every step decodes and turns back


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("guidance=autoguidance", r"needs a weaker model: guidance.auto.snapshot=<a fraction"),
        ("guidance=autoguidance guidance.auto.snapshot=0.3", r"snapshot=0.3 is not among ldm.fit.snapshots=\[0.5, 1.0\]"),
        ("guidance=autoguidance guidance.auto.snapshot=1.0", r"must be below eval.at=\[1.0\].*\[0.5\]"),
        ("guidance=autoguidance guidance.auto.run=nobody", r"guidance.auto.run=nobody is no run of this store.*none yet"),
        ("guidance=autoguidance guidance.auto.snapshot=0.5 guidance.auto.scale=-1", r"guidance.auto.scale must be greater than 0"),
        ("guidance=classifier data.fields=[] cond=none", r"guidance=classifier learns to tell classes apart.*Use data with labels"),
        ("guidance=classifier guidance.classifier.network.multipliers=[1,1,1,1,1]", r"has 5 levels, .*at most 4"),
        ("guidance=classifier guidance.classifier.network.width=40", r"guidance.classifier.network.width=40 .*32 or 64"),
        ("guidance=classifier runtime.processes=2 guidance.classifier.fit.batch_size=33", r"batch_size=33 .*2 processes.*32"),
        ("guidance=classifier cond=none cond.label=nothing", r"cond.label='nothing' is not a class"),
        ("guidance=image", r"guidance.image.file is not set"),
        ("guidance=image guidance.image.file=/nowhere.png", r"guidance.image.file=/nowhere.png: no such file"),
        ("guidance=image guidance.image.file=README.md", r"README.md is not a picture"),
        ("guidance=[autoguidance,clasifier]", r"guidance=clasifier: no such option. Did you mean 'classifier'"),
        ("guidance=image guidance/transform=msk guidance.image.file=x", r"Did you mean 'mask'"),
        ("guidance=classifier guidance.classifier.network.poool=mean", r"Did you mean 'pool'"),
        ("guidance.auto.scale=2", r"guidance.auto.scale: no such option"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said(words: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        plan_of(*words.split(), root=tmp_path)
    assert "\n" not in str(caught.value)


def test_a_picture_that_the_transform_does_not_fit(picture: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"guidance.image.transform.factor=3 does not divide data.resolution=32"):
        plan_of("guidance=image", picture, "guidance.image.transform.factor=3", root=tmp_path)


def test_a_classifier_lets_an_unconditional_denoiser_be_asked_for_a_class(tmp_path: Path) -> None:
    assert plan_of("guidance=classifier", "cond=none", "cond.label=3", root=tmp_path).has("samples")
    with pytest.raises(ConfigError, match="or guidance=classifier"):
        plan_of("cond=none", "cond.label=3", root=tmp_path)


# ---- the denoiser of another run -----------------------------------------------------------------------------------------


def pretend_run(root: Path, *words: str, change: Any = None) -> str:
    """A finished run in the store, as far as a plan looks at it; returns its id."""
    composed = load([*BASE, f"store={root}", *words])
    plan = prepare(composed)
    at = plan.address("denoiser")
    folder = root / "denoiser" / f"{at.name}-{at.id}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "done.json").write_text("{}")
    fit = composed.cfg.ldm.fit
    for place in (folder, folder / "snapshots" / f"{images_at(fit, 0.5):012d}"):
        place.mkdir(parents=True, exist_ok=True)
        for kept in ("weights", *(["ema"] if fit.ema is not None else [])):
            (place / f"{kept}.safetensors").touch()
    run = root / "runs" / f"{plan.run.name}-{plan.run.id}"
    run.mkdir(parents=True, exist_ok=True)
    stage = {
        "stage": "denoiser",
        "id": at.id,
        "name": at.name,
        "folder": f"../../denoiser/{folder.name}",
        "upstream": at.upstream,
    }
    record = {
        "id": plan.run.id,
        "command": "python src/train.py …",
        "config": OmegaConf.to_container(composed.cfg),
        "stages": [stage],
    }
    (run / "run.json").write_text(json.dumps(record))
    return plan.run.id


def test_another_run_is_found_by_its_name_or_id_and_is_in_the_samples_id(tmp_path: Path) -> None:
    other = pretend_run(tmp_path, "ldm.network.multipliers=[1,2]")
    name = next((tmp_path / "runs").iterdir()).name
    plans = [
        plan_of("guidance=autoguidance", f"guidance.auto.run={w}", root=tmp_path)
        for w in (other, name, name.rpartition("-")[0])
    ]
    assert len({p.address("samples").id for p in plans}) == 1
    weak = plans[0].stage(WeakModel)
    assert weak.address.id in plans[0].address("samples").upstream.values() and weak.other is not None
    assert weak.other.id in weak.address.upstream.values()
    assert weak.other.cfg.ldm.network.multipliers == [1, 2] and weak.images == 120_064
    early = plan_of("guidance=autoguidance", f"guidance.auto.run={other}", "guidance.auto.snapshot=0.5", root=tmp_path)
    assert early.stage(WeakModel).other.folder.name == "000000060032"  # type: ignore[union-attr]
    assert early.address("samples").id != plans[0].address("samples").id
    pretend_run(tmp_path, "ldm.network.multipliers=[2,2]")
    with pytest.raises(ConfigError, match=r"is 2 runs; give the id"):
        plan_of("guidance=autoguidance", f"guidance.auto.run={name.rpartition('-')[0]}", root=tmp_path)


@pytest.mark.parametrize(
    ("theirs", "ours", "said"),
    [
        ("ae.regulariser.weight=1e-5", "", r"was trained on latents \w+, this one on latents \w+"),
        ("objective=v_cosine", "", r"another objective.schedule"),
        ("cond=none", "", r"another condition \(Compose\) than this run \(ClassLabel\)"),
        ("cond.drop=0", "sampler.guidance=2", r"cond.drop=0 and knows no null condition"),
        ("ldm.fit.ema=null eval.weights=raw", "", r"keeps no averaged weights"),
        ("", "", r"is this denoiser itself"),
    ],
)
def test_another_run_that_does_not_fit_is_refused(theirs: str, ours: str, said: str, tmp_path: Path) -> None:
    other = pretend_run(tmp_path, *theirs.split())
    with pytest.raises(ConfigError, match=said):
        plan_of("guidance=autoguidance", f"guidance.auto.run={other}", *ours.split(), root=tmp_path)


def test_another_run_that_is_not_finished_is_refused(tmp_path: Path) -> None:
    other = pretend_run(tmp_path, "ldm.network.multipliers=[1,2]")
    next(tmp_path.glob("denoiser/*/done.json")).unlink()
    with pytest.raises(ConfigError, match=r"has no finished denoiser. Finish it: python src/train.py …"):
        plan_of("guidance=autoguidance", f"guidance.auto.run={other}", root=tmp_path)
