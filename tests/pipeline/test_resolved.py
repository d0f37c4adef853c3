"""Each part of a run is built once; stages follow what they stand on; a stage from outside is a stage like any other."""

import functools
import json
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from ldmlab.autoencoders.autoencoder import Autoencoder
from ldmlab.config.compose import load
from ldmlab.diffusion.denoiser import Denoiser
from ldmlab.diffusion.objectives import Objective
from ldmlab.errors import ConfigError, UserError
from ldmlab.pipeline import plan as plans
from ldmlab.pipeline.context import Context
from ldmlab.pipeline.data import DataStage
from ldmlab.pipeline.launch import make_accelerator
from ldmlab.pipeline.plan import KINDS, Plan, in_order, table
from ldmlab.pipeline.run import execute, prepare
from ldmlab.pipeline.stage import Row, Stage
from ldmlab.samplers.ddim import DDIM

BASE = [
    "debug=tiny", "data.resolution=32", "data.train_images=64", "data.val_images=16", "data.cached=false", "ldm.fit.snapshots=[0.5]",
]  # fmt: skip
SNAPSHOT = "guidance.auto.snapshot=0.5"


def plan_of(*words: str, root: Path) -> Plan:
    return prepare(load([*BASE, f"store={root}", *words]))


# ---- once ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each kind of part was constructed."""
    count: Counter[str] = Counter()

    def counted(cls: type) -> Any:
        original = cls.__init__

        @functools.wraps(original)
        def init(self: Any, *args: Any, **options: Any) -> None:
            count[cls.__name__] += 1
            original(self, *args, **options)

        return init

    for cls in (Autoencoder, Denoiser, Objective, DDIM):
        monkeypatch.setattr(cls, "__init__", counted(cls))
    return count


GUIDED = f"guidance=[classifier,autoguidance] {SNAPSHOT} sampler.guidance=2"


@pytest.mark.parametrize(
    ("words", "dry"),
    [("", False), ("eval.at=[0.5,1.0]", False), (GUIDED, False), ("ae.train=decoder", False), (GUIDED, True),
     ("ae=vq_f8 ldm=dit_tiny", True)],
)  # fmt: skip
def test_each_part_is_built_once(words: str, dry: bool, built: Counter[str], tmp_path: Path) -> None:
    """A dry run, which counts operations too, builds no more. (The weak model is a denoiser's snapshot: no other network.)"""
    plan = plan_of(*words.split(), f"dry_run={str(dry).lower()}", root=tmp_path)
    table(plan, costs=dry)
    assert built == {"Autoencoder": 1, "Denoiser": 1, "Objective": 1, "DDIM": 1}


def test_parts_of_the_plan_have_no_contents(tmp_path: Path) -> None:
    found = plan_of(root=tmp_path).resolved
    for part in (found.autoencoder, found.denoiser):
        assert {p.device.type for p in part.parameters()} == {"meta"}


# ---- order ---------------------------------------------------------------------------------------------------------------


COMPOSITIONS = [
    "", "until=latents", "eval.at=[0.5,1.0]", "ae.train=decoder", f"guidance=[classifier,autoguidance] {SNAPSHOT}",
    "latents.cache=never",
]  # fmt: skip


@pytest.mark.parametrize("words", COMPOSITIONS)
def test_order_follows_what_stages_stand_on(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = plan_of(*words.split(), root=tmp_path)
    monkeypatch.setattr(plans, "KINDS", KINDS[::-1])  # the list decides ties alone
    for plan in (straight, plan_of(*words.split(), root=tmp_path)):
        for i, stage in enumerate(plan.order):
            below = [on for on in stage.upstream().values() if isinstance(on, Stage)]
            assert all(on in plan.order[:i] for on in below), [s.name for s in plan.order]
        assert len({stage.address.id for stage in plan.order}) == len(plan.order)
    assert {s.address.id for s in plan.order} == {s.address.id for s in straight.order}


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("until=autoencoder", ["reconstructions"]),
        ("until=denoiser", ["reconstructions", "denoiser"]),
        ("until=samples eval.at=[0.5,1.0]", ["reconstructions", "samples", "samples"]),
        ("eval.at=[0.5,1.0]", ["reconstructions", "scores", "scores"]),
        (f"guidance=[classifier,autoguidance] {SNAPSHOT} until=samples", ["reconstructions", "samples"]),
    ],
)
def test_ends_are_what_nothing_stands_on(words: str, names: list[str], tmp_path: Path) -> None:
    plan = plan_of(*words.split(), root=tmp_path)
    assert sorted(stage.name for stage in plan.ends) == sorted(names)
    reached = {id(stage) for stage in in_order(iter(plan.ends))}
    assert reached == {id(stage) for stage in plan.order}  # nothing is made that no end needs
    assert sorted(plan.run.upstream.values()) == sorted(stage.address.id for stage in plan.ends)


class Standing(Stage):
    """Stands on whatever it is told to."""

    def __init__(self, name: str):
        self.label_, self.below = name, {}

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.label_

    def upstream(self) -> dict[str, Stage | str]:
        return self.below


def test_a_circle_is_refused() -> None:
    a, b, c = (Standing(name) for name in "abc")
    a.below, b.below = {"b": b, "file": "0123"}, {"c": c}
    assert [stage.name for stage in in_order(iter([a, b]))] == ["c", "b", "a"]
    c.below = {"a": a}
    with pytest.raises(ConfigError, match="circle: a → b → c → a") as caught:
        in_order(iter([a]))
    assert "\n" not in str(caught.value)


def test_a_command_that_does_not_train_says_what_would_have_to_be(tmp_path: Path) -> None:
    composed = load([*BASE, f"store={tmp_path}"])
    with pytest.raises(
        UserError, match=r"the autoencoder \w{12} is not trained yet.*trains nothing.*python src/train.py ae=x"
    ) as caught:
        execute(composed, "python src/score.py ae=x", may_train=False)
    assert "\n" not in str(caught.value) and not list(tmp_path.glob("*/*/done.json"))


# ---- a stage from outside ------------------------------------------------------------------------------------------------


class Brightness(Stage):
    """The mean of some training images: a stage that no file of the package knows."""

    name: ClassVar[str] = "brightness"
    due: ClassVar[str | None] = "latents"

    def __init__(self, plan: Any, images: int = 4):
        super().__init__(plan)
        self.images = images

    def own(self) -> dict[str, Any]:
        return {"images": self.images}

    def upstream(self) -> dict[str, Stage | str]:
        return {"data": self.plan.stage(DataStage)}

    def row(self) -> Row:
        return Row(f"of {self.images} images", self.images)

    def work(self, ctx: Context, folder: Path) -> None:
        (folder / "mean.json").write_text(json.dumps(mean_of(ctx.data, self.images)))


class Plain(Brightness):
    """With the constructor that every stage has."""

    name: ClassVar[str] = "plain"
    images = 2
    __init__ = Stage.__init__  # type: ignore[assignment]


def mean_of(data: Any, images: int) -> float:
    return float(np.mean([np.asarray(data[i]["image"]) for i in range(images)]))


OUTSIDE = "+stage={brightness: {_target_: test_resolved.Brightness, _partial_: true}}"


def test_a_stage_from_outside_is_one_of_the_run(tmp_path: Path) -> None:
    plan, without = plan_of(OUTSIDE, root=tmp_path), plan_of(root=tmp_path)
    assert {stage.name for stage in plan.order} - {stage.name for stage in without.order} == {"brightness"}
    assert plan.run.id != without.run.id and plan.address("denoiser").id == without.address("denoiser").id
    stage = plan.named("brightness")
    assert stage in plan.ends and ("brightness", "of 4 images") in [(s.name, row.what) for s, row in plan.rows]
    assert stage.address.upstream == {"data": plan.address("data").id} and stage.address.options == {"images": 4}
    folder = stage.make(Context(plan.resolved.cfg, plan, make_accelerator("cpu")))
    assert json.loads((folder / "mean.json").read_text()) == pytest.approx(mean_of(plan.resolved.data, 4), rel=1e-6)
    assert plan.store.done(stage.address) is not None and folder.parent == tmp_path / "brightness"


def test_options_of_a_stage_from_outside_are_checked_and_in_its_id(tmp_path: Path) -> None:
    ids = {plan_of(OUTSIDE, *w, root=tmp_path).address("brightness").id for w in ([], ["+stage.brightness.images=8"])}
    assert len(ids) == 2
    assert not plan_of(OUTSIDE, "until=autoencoder", root=tmp_path).has("brightness")  # due: latents
    with pytest.raises(ConfigError, match=r"stage\.brightness\.imagse: no such option\. Did you mean 'images'"):
        plan_of(OUTSIDE, "+stage.brightness.imagse=8", root=tmp_path)


def test_a_stage_without_options_of_its_own(tmp_path: Path) -> None:
    plan = plan_of("+stage={plain: {_target_: test_resolved.Plain, _partial_: true}}", root=tmp_path)
    assert plan.named("plain").address.options == {"images": 2}
