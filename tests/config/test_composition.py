"""What is remembered of a composition is what Hydra makes of it anew; it notices a changed yaml, and no value stays behind."""

import shutil
from pathlib import Path

import pytest
from hydra._internal import defaults_list
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from ldmlab.config import composition, search
from ldmlab.config.compose import CONF, load
from ldmlab.config.composition import remembered, whole
from ldmlab.config.conditions import spread
from ldmlab.config.words import read
from ldmlab.errors import ConfigError

GROUPS = "ae=kl_f8 ldm=unet_base debug=tiny"


@pytest.mark.parametrize(
    "words",
    [
        f"{GROUPS} seed=3 ae.fit.lr=1e-3 ae.fit.betas=[0.5,0.9] store=/a/b",
        "experiment=demo sampler.steps=3 eval.metrics=[fid,kid] metric.kid.subsets=10",
        "ae=kl_f4 ae/loss/discriminator=patchgan_2 data.resolution='${ae.fit.batch_size}'",
        "cond=[class_label,semantic] data.fields=[label,segmentation] cond.parts.semantic.drop=0.2",
        "+ae.regulariser.extra=1 ++ldm.network.norm_groups=8 ldm.fit={images:64}",
    ],
)
def test_it_is_hydra_s_own_composition(words: str) -> None:
    typed = spread(read(words.split()))
    for _ in range(2):  # made, and remembered
        (ours, our_hydra), (theirs, hydra) = remembered(typed), whole(typed)
        assert ours == theirs and OmegaConf.to_yaml(ours) == OmegaConf.to_yaml(theirs)
        assert our_hydra.runtime.choices == hydra.runtime.choices
        assert our_hydra.sweeper.get("params") == hydra.sweeper.get("params")


def test_what_hydra_leaves_out_here_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside Hydra as it was installed; one yaml's list of defaults refers to another choice."""
    (tmp_path / "sampler" / "kind").mkdir(parents=True)
    (tmp_path / "sampler" / "follows.yaml").write_text(
        "defaults: [{kind@_here_: '${debug}'}, _self_]\n_partial_: true\n"
    )
    (tmp_path / "sampler" / "kind" / "tiny.yaml").write_text("_target_: ldmlab.samplers.ddim.ddim\nsteps: 17\n")
    words = read(f"{GROUPS} sampler=follows hydra.searchpath=[file://{tmp_path}]".split())
    ours, our_hydra = whole(words)
    assert ours.sampler.steps == 17
    monkeypatch.setattr(defaults_list, "_create_interpolation_map", composition._table_of_choices)
    monkeypatch.delattr(ConfigStore, "__deepcopy__")
    theirs, hydra = whole(words)
    assert OmegaConf.to_yaml(ours) == OmegaConf.to_yaml(theirs) and our_hydra.runtime.choices == hydra.runtime.choices


@pytest.mark.parametrize("words", ["ldm.fit.image=3", "seed=a", "ae=kl_f7", "ae.fit=null ae.fit.lr=1", "ae/los=pixel"])
def test_what_it_refuses_hydra_refuses_in_the_same_words(words: str) -> None:
    typed = read(words.split())
    said = []
    for compose in (remembered, whole):
        with pytest.raises(Exception) as caught:  # of every kind
            compose(typed)
        said.append((type(caught.value), str(caught.value)))
    assert said[0] == said[1]


def test_no_value_stays_behind() -> None:
    first = load([*GROUPS.split(), "ae.fit.lr=0.5", "ae.fit.betas=[0.1,0.2]"]).cfg
    plain = load(GROUPS.split()).cfg
    assert first.ae.fit.lr == 0.5 and plain.ae.fit.lr != 0.5 and list(plain.ae.fit.betas) != [0.1, 0.2]


def test_a_changed_yaml_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(CONF, tmp_path / "conf")
    monkeypatch.setattr(search, "CONF", tmp_path / "conf")
    monkeypatch.setattr(search, "ROOT", tmp_path)
    file = tmp_path / "conf" / "sampler" / "ddim.yaml"
    before = load(["seed=1"]).cfg.sampler.steps
    file.write_text(f"{file.read_text().rstrip()}\n")
    file.write_text(file.read_text().replace(f"steps: {before}", f"steps: {before + 7}"))
    assert load(["seed=1"]).cfg.sampler.steps == before + 7
    made = composition._of_groups.cache_info().misses
    assert load(["seed=2"]).cfg.sampler.steps == before + 7 and composition._of_groups.cache_info().misses == made


def test_a_yaml_that_overrides_what_is_not_there_is_said_in_one_line(tmp_path: Path) -> None:
    """Composing again without the word that failed cannot help where a file asked for it."""
    (tmp_path / "experiment").mkdir()
    for name in ("nonsense", "arm"):  # no group; a group that the menu has after experiments
        (tmp_path / "experiment" / "odd.yaml").write_text(
            f"# @package _global_\ndefaults: [{{override /{name}: lr}}]\n"
        )
        with pytest.raises(ConfigError, match=rf"experiment/odd.*'{name}'"):
            load([f"hydra.searchpath=[file://{tmp_path}]", "experiment=odd"])


def test_an_experiment_may_ask_for_the_search_of_a_rate(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "rates.yaml").write_text(
        "# @package _global_\ntune: {factors: [0.5, 1.0], share: 0.1, val_images: 8, seed: 1}\n"
    )
    words = [f"hydra.searchpath=[file://{tmp_path}]", "experiment=rates"]
    assert list(load(words).cfg.tune.factors) == [0.5, 1.0] and load([*words, "tune=none"]).cfg.tune is None
