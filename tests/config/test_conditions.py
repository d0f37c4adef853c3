"""Several conditionings by one word: what is composed, what is refused, and what of it is in an id."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ldmlab import build
from ldmlab.conditioning.base import Cond
from ldmlab.conditioning.class_label import ClassLabel
from ldmlab.conditioning.compose import Compose
from ldmlab.config import search
from ldmlab.config.compose import load
from ldmlab.diffusion.denoiser import Denoiser
from ldmlab.errors import ConfigError
from ldmlab.pipeline.plan import Plan
from ldmlab.pipeline.run import prepare
from ldmlab.pipeline.stage import conditioning
from ldmlab.training.diffusion_loss import DiffusionLoss

BOTH = ["cond=[class_label,semantic]", "data.fields=[label,segmentation]"]
SMALL = [
    "debug=tiny",
    "data.resolution=32",
    "data.train_images=32",
    "data.val_images=16",
    "data.cached=false",
    "until=samples",
]


def plan_of(root: Path, *words: str) -> Plan:
    return prepare(load([*SMALL, *words, f"store={root}"]))


def deciding(*words: str) -> dict[str, Any]:
    """What of the condition is in a denoiser's id."""
    cfg = load(words).cfg
    with build.shapes_only():
        made = build.conditioner(cfg, build.dataset(cfg, "train", None))
    return conditioning(cfg, made)


def test_each_has_its_own_options_and_one_denoiser_takes_both(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, *BOTH, "cond.parts.class_label.conditioner.dim=96")
    resolved = plan.resolved
    assert resolved.choices["cond"] == "class_label+semantic" and resolved.cfg.cond.conditioner is None
    assert (resolved.conditioner.context_dim, resolved.conditioner.concat_channels) == (96, 3)
    assert resolved.conditioner.needs == ("label", "segmentation")
    first = resolved.denoiser.network.input_blocks[0][0].weight  # type: ignore[index, union-attr]
    assert first.shape[1] == resolved.latent_shape[0] + 3
    assert load([*SMALL, *BOTH]).cfg.cond.parts.class_label.conditioner.dim == 32  # debug=tiny reaches the parts


def test_their_order_does_not_matter_and_their_options_do() -> None:
    together, apart = deciding(*BOTH), deciding(*BOTH, "cond.apart=true")
    assert together == deciding("cond=[semantic,class_label]", BOTH[1])
    assert together != apart != deciding(*BOTH, "cond.apart=true", "cond.parts.semantic.drop=0.3")
    assert together != deciding(*BOTH, "cond.drop=0.3")


def test_one_condition_is_in_an_id_as_it_always_was() -> None:
    """No word of several: denoisers that were trained before are found again."""
    own = {
        "field": "segmentation",
        "channels": 3,
        "_partial_": True,
        "_target_": "ldmlab.conditioning.spatial_rescaler.SpatialRescaler",
    }
    assert deciding("cond=semantic") == deciding("cond=[semantic]") == {"conditioner": own, "drop": 0.1}


def test_an_experiment_may_choose_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\ndefaults:\n  - override /cond: [semantic, class_label]\ndata: {fields: [label, segmentation]}\n"
    (tmp_path / "experiment" / "both.yaml").write_text(text)
    words = [
        f"{search.SEARCHPATH}=[file://{tmp_path}]",
        "experiment=both",
        "cond.parts.semantic.conditioner.channels=5",
    ]
    cfg = load(words).cfg
    assert list(cfg.cond.parts) == ["class_label", "semantic"] and cfg.cond.parts.semantic.conditioner.channels == 5


@pytest.mark.parametrize(
    "words,said",
    [
        (["cond=[class_label,semantik]"], r"cond=semantik: no such option. Did you mean 'semantic'"),
        (["cond=[class_label,none]"], r"none is no conditioning beside others"),
        (["cond=[]"], r"cond is not chosen"),
        (["cond=semantic", "cond.apart=true"], r"cond\.apart=true.*there is one"),
        ([*BOTH, "cond.parts.semantic.drop=0.3"], r"cond\.parts\.semantic\.drop=0\.3: conditions are dropped together"),
        ([*BOTH, "cond.apart=true", "cond.drop=0.3"], r"cond\.drop and cond\.apart=true are both given"),
        ([*BOTH, "cond.parts.semantic.label=3"], r"cond\.parts\.semantic\.label"),
        ([*BOTH, "cond.parts.semantic.conditioner.chanels=3"], r"chanels: no such option. Did you mean 'channels'"),
        ([*BOTH, "cond.parts.semantic.conditioner.channels=0"], r"conditioner\.channels must be between 1"),
        (["cond.conditioner=null"], r"cond\.conditioner=null leaves no conditioning"),
    ],
)
def test_what_cannot_be_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load(words)


def test_a_missing_field_is_named_with_the_way_to_it(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"cond=semantic needs the field 'segmentation'.*data\.fields=\[label,segmentation\]"
    ):
        plan_of(tmp_path, "cond=semantic")
    with pytest.raises(
        ConfigError, match=r"tokens of different widths, \[32, 64\].*cond\.parts\.<name>\.conditioner\.dim"
    ):
        Compose([ClassLabel(3, 32), ClassLabel(3, 64)])


# ---- dropping ------------------------------------------------------------------------------------------------------------


class Seen(torch.nn.Module):
    """A network that keeps the condition that it got."""

    def forward(self, z: torch.Tensor, t: torch.Tensor, cond: Cond) -> torch.Tensor:
        self.vector = cond.vector_BD
        return z


def test_conditions_are_dropped_together_or_apart() -> None:
    torch.manual_seed(0)
    parts: list[Any] = [ClassLabel(3, 4, "vector"), ClassLabel(3, 4, "vector")]
    net = Seen()
    model, batch = Denoiser(net, Compose(parts)), {"label": torch.tensor([0, 1, 2])}
    own, null = [p(batch).vector_BD for p in parts], [p.null(3, (1, 1), "cpu").vector_BD for p in parts]
    z, t = torch.zeros(3, 1, 1, 1), torch.zeros(3)
    model(z, t, batch, torch.tensor([True, False, False]))
    torch.testing.assert_close(net.vector[0], null[0][0] + null[1][0])
    torch.testing.assert_close(net.vector[1:], (own[0] + own[1])[1:])
    model(z, t, batch, torch.tensor([[True, False], [False, True], [True, True]]))
    wanted = [null[0][0] + own[1][0], own[0][1] + null[1][1], null[0][2] + null[1][2]]
    torch.testing.assert_close(net.vector, torch.stack(wanted))


def test_each_is_dropped_as_often_as_it_says() -> None:
    from ldmlab.randomness import Draws

    class Frozen(torch.nn.Module):
        c = 1

    loss = DiffusionLoss(Denoiser(Seen(), Compose([])), Frozen(), None, Draws(0), [0.5, 0.0, 0.25])  # type: ignore[arg-type]
    drop = loss.dropped(torch.arange(4000), torch.device("cpu"))
    assert drop is not None and drop.shape == (4000, 3)
    share = drop.float().mean(dim=0)
    assert share[1] == 0 and abs(share[0] - 0.5) < 0.03 and abs(share[2] - 0.25) < 0.03
    both = (drop[:, 0] & drop[:, 2]).float().mean()
    assert abs(both - 0.125) < 0.03  # independent of each other
    again = loss.dropped(torch.arange(16, 32), torch.device("cpu"))
    assert again is not None and torch.equal(again, drop[16:32])  # the position's own


# ---- the paper's networks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ldm,cond,millions",
    [("semantic_f4", "semantic", 215.23), ("sr_f4", "superres", 113.62), ("inpaint_f4", "inpaint", 215.23)],
)
def test_the_paper_s_networks_compose_with_their_conditions(
    ldm: str, cond: str, millions: float, tmp_path: Path
) -> None:
    """Tables 12 to 15: 6 input channels for maps and small images, 7 for a masked latent and its mask."""
    words = [
        f"ldm={ldm}",
        f"cond={cond}",
        "ae=vq_f4",
        "data.resolution=256",
        "data.fields=[label,segmentation]",
        "eval=none",
    ]
    resolved = prepare(load([*words, "until=denoiser", "data.cached=false", f"store={tmp_path}"])).resolved
    network = resolved.denoiser.network
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)
    first = network.input_blocks[0][0].weight  # type: ignore[index, union-attr]
    assert first.shape[1] == (7 if cond == "inpaint" else 6)
