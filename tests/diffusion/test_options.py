"""Every objective in conf/ builds and is what its name says; ids of older runs hold; mistakes are one line."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ldmlab import build
from ldmlab.config.compose import Composed, group_options, load
from ldmlab.diffusion.objectives import Objective
from ldmlab.errors import ConfigError
from ldmlab.pipeline.denoiser import DenoiserStage
from ldmlab.pipeline.run import prepare

BASE = ["data.train_images=64", "data.val_images=16", "data.cached=false"]


def composed(*words: str) -> Composed:
    return load([*BASE, *words])


def made(*words: str) -> Objective:
    return build.objective(composed(*words).cfg)


@pytest.mark.parametrize("option", group_options("objective"))
def test_every_objective_builds(option: str) -> None:
    objective = made(f"objective={option}")
    assert objective.schedule.T == 1000
    target = option.split("_")[0]
    assert type(objective.target).__name__.lower() == {"flow": "velocity"}.get(target, target)


@pytest.mark.parametrize(
    ("group", "option"),
    [(g, o) for g in ("schedule", "weighting", "times") for o in group_options(f"objective/{g}")],
)
def test_every_part_goes_with_v(group: str, option: str) -> None:
    objective, plain = made("objective=v_cosine", f"objective/{group}={option}"), made("objective=v_cosine")
    t_B, u_B = torch.arange(objective.schedule.T), torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    changed = {
        "schedule": not torch.equal(objective.schedule.alpha_bar_T, plain.schedule.alpha_bar_T),
        "weighting": objective.weight(t_B) is not None,
        "times": not torch.equal(objective.t(u_B), plain.t(u_B)),
    }
    untouched = option in ("cosine", "none", "uniform", "simple")  # what v_cosine has already
    assert changed == {name: name == group and not untouched for name in changed}


@pytest.mark.parametrize(
    ("option", "end"),  # docs/paper.md#noise-schedule: alpha_bar at t = 999
    [("eps_linear", 1.42e-4), ("eps_churches", 6.69e-4), ("eps_layout", 9.69e-5), ("eps_txt2img", 4.66e-3)],
)
def test_end_points_of_the_paper(option: str, end: float) -> None:
    objective = made(f"objective={option}")
    assert float(objective.schedule.alpha_bar_T[-1]) == pytest.approx(end, rel=5e-3)
    assert objective.distance == ("l1" if option in ("eps_churches", "eps_layout") else "l2")


def test_the_shift_follows_the_latent() -> None:
    # 32 px: f = 4 gives 8x8 latents, f = 2 gives 16x16; both below the 32x32 at which nothing is shifted
    for ae, factor in (("kl_f4", 0.25), ("kl_f2", 0.5), ("identity", 1.0)):
        assert made(f"ae={ae}", "objective=flow_sd3").schedule.factor == factor  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"objective\.schedule\.latent_size: no such option"):
        made("objective=flow_sd3", "+objective.schedule.latent_size=8")


def test_delta_is_in_an_id_of_huber_alone(tmp_path: Path) -> None:
    def own(*words: str) -> dict[str, Any]:
        return prepare(composed(*words, f"store={tmp_path}")).stage(DenoiserStage).own()["objective"]

    names = ["_target_", "loss", "schedule", "stratified", "target", "times", "weighting"]
    plain = own("objective=eps_linear")
    assert sorted(plain) == names and (plain["weighting"], plain["times"], plain["stratified"]) == (None, None, False)
    told = own("objective=eps_minsnr", "objective.stratified=true")
    assert sorted(told) == names and told["weighting"] is not None and told["stratified"] is True
    assert "delta" in own("objective.loss=huber")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["objective.target=epz"], r"objective\.target must be one of eps, v, z0, flow .*got 'epz'. Did you mean 'eps'"),
        (["objective.schedule=cosine"], r"objective\.schedule must be a part with a _target_ \(Schedule\); got 'cosine'"),
        (["objective/schedule=cosin"], r"objective/schedule=cosin: no such option\. Did you mean 'cosine'"),
        (["objective=eps_linear", "objective/schedule=flow"], r"objective\.target=eps cannot work with a schedule that ends"),
        (["objective=v_minsnr", "objective/schedule=flow"], r"objective\.weighting=MinSNR gives time 999"),
        (["objective=eps_minsnr", "objective.weighting.gama=3"], r"objective\.weighting\.gama: no such option"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        made(*words)
    assert "\n" not in str(caught.value)
