"""Conditions: how they combine, what class labels say, and what they refuse."""

import pytest
import torch
from torch import nn

from ldmlab.conditioning.base import Cond, Size
from ldmlab.conditioning.class_label import ClassLabel, class_index
from ldmlab.conditioning.compose import Compose
from ldmlab.errors import ConfigError, DataError


class Given(nn.Module):
    """A conditioner that answers what it was given."""

    needs = ("given", "label")

    def __init__(self, cond: Cond):
        super().__init__()
        self.cond = cond
        self.context_dim = None if cond.tokens_BLD is None else cond.tokens_BLD.shape[2]
        self.vector_dim = None if cond.vector_BD is None else cond.vector_BD.shape[1]
        self.concat_channels = 0 if cond.concat_BCHW is None else cond.concat_BCHW.shape[1]

    def forward(self, batch: dict[str, torch.Tensor]) -> Cond:
        return self.cond

    def null(self, batch_size: int, size: Size, device: str) -> Cond:
        return Cond(*(None if p is None else torch.zeros_like(p) for p in self.cond._parts()))


def full() -> Cond:
    return Cond(torch.randn(2, 3, 8), torch.randn(2, 1, 4, 4), torch.randn(2, 5))


def test_batches_concatenate_select_and_repeat() -> None:
    a, b = full(), full()
    assert a.tokens_BLD is not None and b.tokens_BLD is not None and a.vector_BD is not None and b.vector_BD is not None
    both = a.cat(b)
    assert both.tokens_BLD is not None and torch.equal(both.tokens_BLD[2:], b.tokens_BLD)
    chosen = a.select(torch.tensor([True, False]), b)
    assert chosen.vector_BD is not None and torch.equal(chosen.vector_BD, torch.stack([b.vector_BD[0], a.vector_BD[1]]))
    assert chosen.tokens_BLD is not None and torch.equal(chosen.tokens_BLD[0], b.tokens_BLD[0])
    repeated = a.repeat(3)
    assert repeated.vector_BD is not None and torch.equal(repeated.vector_BD[:3], a.vector_BD[:1].expand(3, -1))
    assert Cond().empty and Cond().cat(Cond()).empty and not a.empty


def test_conditions_of_different_kinds_do_not_mix() -> None:
    with pytest.raises(ValueError, match="only one of them has concat, vector"):
        full().cat(Cond(tokens_BLD=torch.zeros(2, 1, 8)))


def test_several_conditioners_join() -> None:
    a, b = full(), Cond(torch.randn(2, 1, 8), torch.randn(2, 2, 4, 4), torch.randn(2, 5))
    both = Compose([Given(a), Given(b)])
    assert (both.context_dim, both.vector_dim, both.concat_channels, both.needs) == (8, 5, 3, ("given", "label"))
    cond = both({})
    assert cond.tokens_BLD is not None and cond.concat_BCHW is not None and cond.vector_BD is not None
    assert torch.equal(cond.tokens_BLD, torch.cat([a.tokens_BLD, b.tokens_BLD], dim=1))  # type: ignore[list-item]
    assert torch.equal(cond.concat_BCHW, torch.cat([a.concat_BCHW, b.concat_BCHW], dim=1))  # type: ignore[list-item]
    assert torch.equal(cond.vector_BD, a.vector_BD + b.vector_BD)  # type: ignore[operator]
    null = both.null(2, (4, 4), "cpu")
    assert null.tokens_BLD is not None and null.tokens_BLD.shape == cond.tokens_BLD.shape and not null.tokens_BLD.any()


def test_no_conditioner_asks_for_nothing() -> None:
    none = Compose([])
    assert none({}).empty and none.null(3, (4, 4), "cpu").empty
    assert (none.needs, none.context_dim, none.concat_channels, none.vector_dim) == ((), None, 0, None)
    assert list(none.parameters()) == []


def test_tokens_of_different_widths_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"cond\.conditioner\.parts have tokens of different widths, \[8, 16\]"):
        Compose([ClassLabel(2, dim=8), ClassLabel(2, dim=16)])


def test_class_label_is_one_learned_token_and_null_is_the_last_row() -> None:
    label = ClassLabel(10, dim=16)
    assert label.embedding.weight.shape == (11, 16)
    cond = label({"label": torch.tensor([3, 9])})
    assert cond.tokens_BLD is not None and cond.tokens_BLD.shape == (2, 1, 16)
    assert torch.equal(cond.tokens_BLD[:, 0], label.embedding.weight[[3, 9]])
    null = label.null(2, (4, 4), "cpu")
    assert null.tokens_BLD is not None and torch.equal(null.tokens_BLD[1, 0], label.embedding.weight[10])
    assert (label.needs, label.context_dim, label.concat_channels, label.vector_dim) == (("label",), 16, 0, None)


@pytest.mark.parametrize("label", [-1, 10])
def test_labels_outside_the_classes_are_refused_the_null_row_included(label: int) -> None:
    with pytest.raises(DataError, match=rf"label {label} of a batch is outside 0 … 9"):
        ClassLabel(10, dim=4)({"label": torch.tensor([0, label])})


def test_options_that_do_not_fit_are_named() -> None:
    with pytest.raises(ConfigError, match="needs data with classes"):
        ClassLabel(0)
    with pytest.raises(ConfigError, match=r"cond\.conditioner\.dim"):
        ClassLabel(3, dim=0)


def test_a_wish_is_a_number_or_a_name() -> None:
    names = ("rose", "tulip", "7")
    assert class_index(1, names) == class_index("1", names) == class_index("tulip", names) == 1
    assert class_index("7", names) == 2  # a name comes before a number
    for wrong in (3, -1, "lily", True):
        with pytest.raises(ConfigError) as error:
            class_index(wrong, names)
        assert f"cond.label={wrong!r}" in str(error.value) and "1 tulip" in str(error.value)
    many = tuple(f"kind{i}" for i in range(1000))
    with pytest.raises(ConfigError, match=r"0 kind0, .*, 9 kind9, …, 999 kind999"):
        class_index(1000, many)


def test_a_class_as_vector_joins_the_time_embedding() -> None:
    token, vector = ClassLabel(3, dim=8), ClassLabel(3, dim=8, form="vector")
    vector.load_state_dict(token.state_dict())
    batch = {"label": torch.tensor([2, 0])}
    assert (token.context_dim, token.vector_dim) == (8, None)
    assert (vector.context_dim, vector.vector_dim) == (None, 8)
    as_token, as_vector = token(batch), vector(batch)
    assert as_vector.tokens_BLD is None and as_token.vector_BD is None
    assert torch.equal(as_vector.vector_BD, as_token.tokens_BLD[:, 0])
    assert torch.equal(vector.null(2, (4, 4), "cpu").vector_BD, vector.embedding.weight[3:].expand(2, -1))
