"""fair=…: what is made equal is equal, what is not is said, and a measured time is measured once."""

import json
from pathlib import Path
from typing import Any

import pytest

from ldmlab.config.compose import load
from ldmlab.errors import ConfigError
from ldmlab.pipeline import budget, throughput
from ldmlab.pipeline.plan import Plan
from ldmlab.pipeline.run import prepare
from ldmlab.pipeline.stage import deciding

BASE = [
    "ldm=unet_study", "data.resolution=16", "data.train_images=64", "data.val_images=16", "data.cached=false", "eval=none",
    "until=denoiser", "ldm.fit.batch_size=4",
]  # fmt: skip


def plan_of(root: Path, *words: str) -> Plan:
    return prepare(load([*BASE, f"store={root}", *words]))


def facts(root: Path, *words: str) -> dict[str, Any]:
    found = plan_of(root, *words).resolved.budget
    assert found is not None
    return found


def test_each_mode_makes_its_own_quantity_equal(tmp_path: Path) -> None:
    target = "ldm.budget.flops_per_image=3e7"
    cells = {mode: facts(tmp_path, "ae=pca_f8", f"fair={mode}", target) for mode in ("flops", "network", "parameters")}
    assert cells["flops"]["network"]["flops_per_image"] == pytest.approx(3e7, rel=0.03)
    assert cells["parameters"]["over_reference"]["parameters"] == pytest.approx(1, rel=0.03)
    assert cells["network"]["network"]["sizes"] == cells["network"]["reference"]["sizes"]
    assert cells["flops"]["over_reference"]["parameters"] > 2  # what is unequal then is in the facts
    assert cells["network"]["over_reference"]["flops_per_image"] < 0.5


def test_modes_meet_at_the_reference(tmp_path: Path) -> None:
    words = ["ae=pca_f4", "ldm.budget.flops_per_image=3e7"]
    plans = [plan_of(tmp_path, *words, f"fair={mode}") for mode in ("flops", "time")]
    assert len({plan.address("denoiser").id for plan in plans}) == 1
    typed = plans[0].resolved.budget["network"]["typed"].split()  # type: ignore[index]
    assert plan_of(tmp_path, "ae=pca_f4", *typed).address("denoiser").id == plans[0].address("denoiser").id


def test_without_a_target_the_reference_is_the_network_as_it_is_configured(tmp_path: Path) -> None:
    as_is = plan_of(tmp_path, "ae=pca_f8")
    assert plan_of(tmp_path, "ae=pca_f8", "fair=network").address("denoiser").id == as_is.address("denoiser").id
    cell = facts(tmp_path, "ae=pca_f8", "fair=flops")
    assert cell["over_reference"]["flops_per_image"] == pytest.approx(1, rel=0.03)
    assert cell["reference"]["sizes"] == "width 32"


def test_what_is_unequal_and_the_totals_stand_in_the_plan(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "ae=kl_f4_small", "ldm.budget.reference_c=4", "fair=flops", "dry_run=true")
    said = " ".join(plan.notes)
    assert "parameters × 1," in said and "seconds an image not measured" in said and "with the first stage" in said
    training, resolved = plan.resolved.budget["training"], plan.resolved  # type: ignore[index]
    images = -(-resolved.cfg.ldm.fit.images // 4) * 4
    assert training["denoiser"] == 3 * resolved.costs.forward * images
    assert training["encoding"] == resolved.costs.encode * 64
    fit = resolved.cfg.ae.fit
    first = 3 * (resolved.costs.encode + resolved.costs.decode) * -(-fit.images // fit.batch_size) * fit.batch_size
    assert training["first_stage"] == first > 0


def test_time_is_measured_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "WORK", 1e8)
    monkeypatch.setattr(budget, "SAME_TIME", 0.3)
    monkeypatch.setattr(budget, "OTHER_TIME", 10.0)  # so short a measurement repeats badly
    words = ["ae=pca_f8", "fair=time", "ldm.budget.flops_per_image=2e7"]
    first = plan_of(tmp_path, *words)
    kept = sorted((tmp_path / "throughput").glob("*/done.json"))
    assert kept and all((path.parent / "card.json").exists() for path in kept)
    stamps = [path.stat().st_mtime_ns for path in kept]
    again = plan_of(tmp_path, *words)
    assert again.address("denoiser").id == first.address("denoiser").id and again.notes == first.notes
    assert [path.stat().st_mtime_ns for path in sorted((tmp_path / "throughput").glob("*/done.json"))] == stamps
    speed = again.resolved.budget["throughput"]  # type: ignore[index]
    assert f"{speed['images_per_second']:.3g} images/s" in " ".join(again.notes) and speed["machine"] in " ".join(
        again.notes
    )
    low, high = speed["quartiles"]
    assert low <= speed["seconds_over_reference"] <= high and speed["images_per_second"] > 0


def test_a_network_beside_itself_takes_its_own_time(tmp_path: Path) -> None:
    """The measurement's own scale: equal work is a ratio of one, whatever else the machine does."""
    speed = facts(tmp_path, "ae=pca_f4", "fair=time", "ldm.budget.flops_per_image=3e7")["throughput"]
    assert 0.6 < speed["seconds_over_reference"] < 1.7
    json.dumps(speed)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fair=speed"], ["fair", "flops", "parameters", "time"]),
        (["fair=flops", "ldm.budget.reference_f=3"], ["reference_f=3", "data.resolution=16"]),
        (["fair=flops", "ldm.network.level_channels=[32,64]", "ldm.budget.parameters=1e6"], ["level_channels", "budget.parameters"]),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said(tmp_path: Path, words: list[str], said: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        plan_of(tmp_path, *words)
    assert all(part in str(error.value) for part in said), str(error.value)


def test_options_that_change_nothing_are_in_no_id() -> None:
    network = load(["ldm=unet_tiny"]).cfg.ldm.network
    assert {"norm_groups", "norm_group_channels", "level_channels"} <= set(network)
    assert not {"norm_groups", "norm_group_channels", "level_channels", "checkpointing"} & set(deciding(network))
    assert "vector_mlp" in network and "vector_mlp" not in deciding(network)
    assert not {"frequency_shift", "vector_mlp"} & set(
        deciding(load(["ldm=dit_tiny", "cond=class_vector"]).cfg.ldm.network)
    )
    study = deciding(load(["ldm=unet_study"]).cfg.ldm.network)
    assert study["norm_group_channels"] == 8 and study["norm_groups"] is None and "level_channels" not in study


def test_a_network_larger_than_free_memory_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the kernel ends the process that measures, or another one."""
    monkeypatch.setattr(throughput, "free", lambda device: 1000)
    with pytest.raises(ConfigError, match=r"needs [\d,]+ GB to train, and 0 GB of this machine's memory are free"):
        plan_of(tmp_path, "ae=pca_f4", "fair=time", "ldm.budget.flops_per_image=3e7")
