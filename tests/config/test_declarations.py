"""Options declare themselves: rules for Annotated, one walker for the schema and for parts, also those from outside the package."""

import math
import sys
from pathlib import Path
from typing import Annotated, Any

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import ReadonlyConfigError

from ldmlab.config.compose import group_options, load, with_values
from ldmlab.config.schema import RunConfig
from ldmlab.config.values import complaint, dataclass_in, declared_number, hints_of, misfit
from ldmlab.errors import ConfigError
from ldmlab.ranges import Choices, FilePath, Items, Moment, OneOrMany, Range, Rising

UNIT = Annotated[float, Range(at_least=0, at_most=1)]
MOMENT = Annotated[float, Moment(at_least=0, at_most=1)]


@pytest.mark.parametrize(
    "value,hint,words",
    [
        (0.5, UNIT, None),
        (1, UNIT, None),
        (-1e-9, UNIT, "between 0 and 1"),
        (math.nan, UNIT, "between 0 and 1"),
        (True, UNIT, "a number"),
        (math.inf, float, "finite"),
        (math.nan, float | None, "finite or null"),
        (math.inf, Annotated[float, Range(above=0, infinite=True)], None),
        (2**53 + 1, int, "between -9.0072e+15 and 9.0072e+15"),
        (0, Annotated[int, Range(above=0)], "greater than 0"),
        ("b", Annotated[str, Choices(("a", "c"))], "one of a, c"),
        (0.25, MOMENT, None),
        (1, MOMENT, None),
        (48_000, MOMENT, None),
        (48_000.0, MOMENT, None),
        (2, MOMENT, "between 0 and 1 (a fraction of the training) or a whole number of images, 8 or more"),
        (48.5, MOMENT, "between 0 and 1 (a fraction of the training) or a whole number of images, 8 or more"),
        (math.inf, MOMENT, "between 0 and 1 (a fraction of the training) or a whole number of images, 8 or more"),
        (math.nan, MOMENT, "between 0 and 1 (a fraction of the training) or a whole number of images, 8 or more"),
        (True, MOMENT, "a number"),
        ([0.1, 2.0], list[UNIT], "between 0 and 1, each of them"),
        ([0.1, "x"], list[UNIT], "a list, each a number"),
        ([], Annotated[list[int], Items(at_least=1)], "a list of at least 1"),
        ([1, 2, 1], Annotated[list[int], Items(distinct=True)], "a list that names nothing twice"),
        ([2.0, 1.0], Annotated[list[float], Rising()], "[low, high] with 0 <= low < high"),
        ([math.nan], Annotated[Any, OneOrMany(Range(above=0))], "finite"),
        ([1.0, 2.0], Annotated[Any, OneOrMany(Range(above=0))], None),
        ("", Annotated[str, FilePath()], "a path that is not empty (the current directory is a dot)"),
        ("a" * 256, Annotated[str, FilePath()], "a path whose folders and file have names of at most 255 bytes"),
        ("pipe:" + "a" * 300, Annotated[str, FilePath()], None),
    ],
)  # fmt: skip
def test_rules(value: Any, hint: Any, words: str | None) -> None:
    assert misfit(value, hint) == words


def test_every_plain_option_says_more_than_a_bare_number() -> None:
    """A number without a range in the schema would be a hole: there is none."""
    bare, stack = [], [RunConfig]
    while stack:
        for name, hint in hints_of(stack.pop()).items():
            if (inner := dataclass_in(hint)) is not None:
                stack.append(inner)
            elif hint in (int, float, int | None, float | None, list[int], list[float]):
                bare.append(name)
    assert bare == []


def test_the_sentence_has_path_rule_value_and_way_out() -> None:
    assert complaint("a.b", 0.5, list[UNIT]) == "a.b must be a list of numbers; got 0.5. Write a.b=[0.5]."


# ---- parts and options from outside ---------------------------------------------------------------------------------------

PART = '''
from typing import Annotated
from ldmlab.ranges import Given, Range

class Wavy:
    """A sampler of somebody else."""
    guidance = 1.0
    def __init__(self, waves: Annotated[int, Range(at_least=1, at_most=9)] = 3, damp: float = 0.5,
                 told: Annotated[int, Given] = 0):
        self.waves = waves
'''


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    (tmp_path / "somebodys_wavy.py").write_text(PART)
    monkeypatch.syspath_prepend(str(tmp_path))
    for file, text in {
        "sampler/wavy.yaml": "_target_: somebodys_wavy.Wavy\nwaves: 4\n",
        "guidance/ours.yaml": "ours:\n  _target_: somebodys_wavy.Wavy\n",
        "metric/depth.yaml": "_target_: somebodys_wavy.Wavy\nwaves: 2\n",
        "cond/mine.yaml": "conditioner:\n  _target_: ldmlab.conditioning.compose.Compose\n  parts: []\ndrop: 0.0\n",
        "data/mine.yaml": "_target_: ldmlab.data.shapes.Shapes\n_partial_: true\nresolution: 32\n",
        "ae/regulariser/mine.yaml": "_target_: ldmlab.autoencoders.regularisers.kl.KL\nweight: 1.0e-3\n",
    }.items():
        (tmp_path / "conf" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "conf" / file).write_text(text)
    yield [f"hydra.searchpath=[file://{tmp_path}/conf]"]
    sys.modules.pop("somebodys_wavy", None)


def test_parts_from_outside_are_chosen_completed_and_bounded(outside: list[str]) -> None:
    chosen = [
        "sampler=wavy",
        "guidance=ours",
        "cond=mine",
        "data=mine",
        "ae/regulariser=mine",
        "eval.metrics=[fid,depth]",
    ]
    cfg, choices = load([*outside, *chosen, "metric.depth.waves=5", "guidance.ours.damp=0.25"])
    assert cfg.sampler == {"_target_": "somebodys_wavy.Wavy", "waves": 4, "damp": 0.5}  # completed; `told` is no option
    assert cfg.guidance.ours.damp == 0.25 and cfg.guidance.classifier is None
    assert cfg.metric.depth.waves == 5 and list(cfg.metric) == ["fid", "depth"]
    assert cfg.ae.regulariser.weight == 1e-3 and choices["cond"] == "mine"


@pytest.mark.parametrize(
    "words,parts",
    [
        (["sampler=wavy", "sampler.waves=10"], ["sampler.waves must be between 1 and 9; got 10"]),
        (["sampler=wavy", "sampler.damp=nan"], ["sampler.damp must be finite"]),
        (["sampler=wavy", "+sampler.told=1"], ["sampler.told: no such option", "takes: waves, damp"]),
        (["sampler=wavi"], ["Did you mean 'wavy'", "ddim"]),
        (["cond=mine", "sampler=wavy", "guidance=our"], ["Did you mean 'ours'"]),
        (["eval.metrics=[dept]"], ["no metric is called 'dept'", "Did you mean 'depth'"]),
        (["guidance=ours", "+guidance.ours.wave=1"], ["guidance.ours.wave", "Did you mean 'waves'"]),
    ],
)  # fmt: skip
def test_mistakes_with_parts_from_outside_are_named(words: list[str], parts: list[str], outside: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load([*outside, *words])
    for part in parts:
        assert part in str(caught.value), caught.value


def test_a_search_path_that_is_none_is_refused(outside: list[str]) -> None:
    assert "wavy" in group_options("sampler", outside) and "wavy" not in group_options("sampler")
    for wrong in ("[file:///no/such/folder]", "[/a]", "[pkg://no.such]"):
        with pytest.raises(ConfigError, match=r"hydra\.searchpath"):
            load([f"hydra.searchpath={wrong}"])


# ---- what completion fills in, and that nothing changes it afterwards -------------------------------------------------------


def test_each_stage_has_its_own_seed_filled_from_the_runs() -> None:
    cfg = load(["seed=7", "guidance=classifier", "ldm.seed=3", "eval.seed=null"]).cfg
    assert (cfg.ae.seed, cfg.ldm.seed, cfg.guidance.classifier.seed, cfg.eval.seed) == (7, 3, 7, 7)
    assert load(["seed=7", "ae.seed=7", "ldm.seed=7"]).cfg == load(["seed=7"]).cfg  # two spellings of one configuration
    assert load([]).cfg.eval.seed == 0


@pytest.mark.parametrize(
    "whole,real",
    [
        (["sampler.guidance=2", "sampler.guidance_interval=[0,1]"], ["sampler.guidance=2.0", "sampler.guidance_interval=[0.0,1.0]"]),
        (["objective=edm", "objective.times.mean=0"], ["objective=edm", "objective.times.mean=0.0"]),
        (["ae=kl_f4_quick_gan", "ae.loss.perceptual.weights=w", "ae.loss.disc_weight=1"],
         ["ae=kl_f4_quick_gan", "ae.loss.perceptual.weights=w", "ae.loss.disc_weight=1.0"]),
        (["ldm.network.dropout=0", "ldm.fit.weight_decay=0"], ["ldm.network.dropout=0.0", "ldm.fit.weight_decay=0.0"]),
    ],
)  # fmt: skip
def test_a_whole_number_for_a_real_one_is_the_same_configuration(whole: list[str], real: list[str]) -> None:
    """Ids are hashes of what is written, where 2 is not 2.0."""
    assert OmegaConf.to_yaml(load(whole).cfg) == OmegaConf.to_yaml(load(real).cfg)


def test_whole_numbers_stay_whole_where_they_may_be() -> None:
    """In the first, 1 is one image and 1.0 the end of training."""
    for value, hint in ((1, int | float), (3, int), (True, float | None), (None, float | None), ("7", float)):
        assert declared_number(value, hint) is value
    assert declared_number([1, 0.5], Annotated[list[UNIT], Items(at_least=1)]) == [1.0, 0.5]


def test_a_composed_configuration_is_read_only() -> None:
    cfg = load([]).cfg
    with pytest.raises(ReadonlyConfigError):
        cfg.ldm.network.width = 64
    changed = with_values(cfg, {"ldm.network.width": 64, "eval.at": [0.5]})
    assert (changed.ldm.network.width, changed.eval.at, cfg.ldm.network.width) == (64, [0.5], 32)
    assert OmegaConf.is_readonly(changed)
    with pytest.raises(ConfigError, match=r"ldm\.network\.widht is no option"):
        with_values(cfg, {"ldm.network.widht": 64})


def test_metrics_settings_are_written_out() -> None:
    cfg = load(["eval.metrics=[kid,fid]", "metric.kid.subsets=50"]).cfg
    assert list(cfg.metric) == ["kid", "fid"] and cfg.metric.kid.subsets == 50
    assert cfg.metric.kid._target_ == "ldmlab.metrics.kid.KID" and "subset_size" in cfg.metric.kid
