"""A conditioner is told what its constructor names, at the top and inside Compose."""

import inspect
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ldmlab import build
from ldmlab.conditioning.base import FACTS, Cond, Facts, Size, built, facts_wanted, given
from ldmlab.conditioning.class_label import ClassLabel
from ldmlab.conditioning.compose import Compose
from ldmlab.conditioning.concat_map import ConcatMap
from ldmlab.config.compose import load
from ldmlab.diffusion.denoiser import Denoiser
from ldmlab.errors import ConfigError

FACTS_OF_A_RUN = Facts(3, ("a", "b", "c"), (4, 8, 8), 32, {"label": 3, "segmentation": 11, "depth": None}, lambda x: x)


class Masked(nn.Module):
    """A conditioner that asks the first stage, as inpainting does."""

    needs, context_dim, vector_dim = ("image",), None, None

    def __init__(self, first_stage: Any, latent_shape: tuple[int, int, int], gain: float = 2.0):
        super().__init__()
        self.first_stage, self.gain, self.concat_channels = first_stage, gain, latent_shape[0]

    def forward(self, batch: dict[str, Any]) -> Cond:
        return Cond(concat_BCHW=self.gain * self.first_stage(batch["image"]))

    def null(self, batch_size: int, size: Size, device: Any) -> Cond:
        return Cond(concat_BCHW=torch.zeros(batch_size, self.concat_channels, *size, device=device))


def test_a_part_is_told_the_facts_that_it_names_and_no_others() -> None:
    assert facts_wanted(partial(ClassLabel, dim=8)) == ("n_classes",)
    assert facts_wanted(partial(ConcatMap, field="depth")) == ("latent_shape", "vocabulary")
    assert facts_wanted(Compose) == facts_wanted(Compose([])) == ()
    nested = partial(Compose, parts=[partial(ClassLabel, dim=8), Compose([]), partial(ConcatMap, field="depth")])
    assert facts_wanted(nested) == ("n_classes", "latent_shape", "vocabulary")
    assert given(inspect.signature(ConcatMap), FACTS_OF_A_RUN) == {
        "latent_shape": (4, 8, 8), "vocabulary": FACTS_OF_A_RUN.vocabulary
    }  # fmt: skip


def test_parts_inside_compose_are_built_with_their_facts() -> None:
    ready = ClassLabel(3, dim=8)
    made = built(
        partial(Compose, parts=[ready, partial(Compose, parts=[partial(ConcatMap, field="segmentation")])]),
        FACTS_OF_A_RUN,
    )
    assert isinstance(made, Compose) and made.parts[0] is ready
    assert (made.needs, made.concat_channels, made.context_dim) == (("label", "segmentation"), 11, 8)
    null = made.null(2, (5, 7), "cpu")
    assert null.concat_BCHW is not None and null.concat_BCHW.shape == (2, 11, 5, 7)


NESTED = [
    "data=shapes", "data.fields=[label,segmentation]", "debug=tiny", "ae=kl_f4_small", "ldm=unet_tiny", "cond=none",
    "cond.conditioner.parts=[{_target_: ldmlab.conditioning.class_label.ClassLabel, _partial_: true, dim: 16},"
    "{_target_: ldmlab.conditioning.concat_map.ConcatMap, _partial_: true, field: segmentation}]",
]  # fmt: skip


def test_options_inside_compose_reach_the_parts_with_their_facts() -> None:
    cfg, _ = load(NESTED)
    data = build.dataset(cfg, "train", None)
    with build.shapes_only():
        ae = build.autoencoder(cfg)
        model = build.denoiser(cfg, ae, data)
    assert isinstance(model.conditioner, Compose) and model.conditioner.needs == ("label", "segmentation")
    alone = build.conditioner(cfg, data)
    assert (alone.concat_channels, alone.context_dim) == (11, 16)
    part = alone.parts[1]  # type: ignore[attr-defined]
    assert part.size == ae.latent_shape(data.resolution)[1:]


def test_a_fact_is_no_option_inside_compose_either() -> None:
    for option, part, fact in (("dim: 16", 0, "n_classes"), ("field: segmentation", 1, "latent_shape")):
        assert fact in FACTS
        with pytest.raises(ConfigError, match=rf"cond\.conditioner\.parts\.{part}\.{fact}: no such option"):
            load([word.replace(option, f"{option}, {fact}: 3") for word in NESTED])


def test_the_first_stage_can_be_asked_and_is_not_owned() -> None:
    """Its answer is the posterior's mean, without a gradient; its weights are not the denoiser's."""
    cfg, _ = load(["data=shapes", "debug=tiny", "ae=kl_f4_small"])
    ae = build.autoencoder(cfg)
    image = torch.rand(2, 3, 32, 32) * 2 - 1
    facts = Facts(3, (), ae.latent_shape(32), 32, {}, build.frozen_encode(ae))
    part = built(partial(Masked, gain=3.0), facts)
    answer = part({"image": image}).concat_BCHW
    assert answer is not None and not answer.requires_grad and torch.equal(answer, 3 * ae.encode(image))
    assert not list(Denoiser(nn.Identity(), Compose([part])).parameters())


class Echo(nn.Module):
    """A network that answers with the mean of each kind of its condition, per example."""

    def forward(self, z_BCHW: Tensor, t_B: Tensor, cond: Cond) -> Tensor:
        assert cond.tokens_BLD is not None and cond.concat_BCHW is not None
        return torch.stack([cond.tokens_BLD.flatten(1).mean(1), cond.concat_BCHW.flatten(1).sum(1)], dim=1)


def test_composed_conditions_are_dropped_together_per_example() -> None:
    torch.manual_seed(0)
    both = Compose([ClassLabel(3, dim=8), ConcatMap("segmentation", (4, 4, 4), {"segmentation": 11})])
    model = Denoiser(Echo(), both)
    z, t = torch.zeros(4, 4, 4, 4), torch.zeros(4, dtype=torch.int64)
    batch = {"label": torch.tensor([0, 1, 2, 0]), "segmentation": torch.randint(11, (4, 16, 16))}
    drop = torch.tensor([True, False, False, True])
    kept, mixed = model(z, t, batch), model(z, t, batch, drop)
    null_row = both.parts[0].embedding.weight[3].mean().detach()  # type: ignore[union-attr]
    torch.testing.assert_close(mixed[drop], torch.tensor([[float(null_row), 0.0]] * 2))
    assert torch.equal(mixed[~drop], kept[~drop])
    assert (kept[:, 1] == 16).all()  # each cell of the latent adds up to one
