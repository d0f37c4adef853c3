"""Between two noises and two conditions, and which seed each sample has."""

import math
import shlex
from pathlib import Path

import pytest
import torch

from ldmlab.conditioning.asked import Asked
from ldmlab.conditioning.base import Cond
from ldmlab.config.compose import load
from ldmlab.errors import ConfigError, UserError
from ldmlab.pipeline.asked import Request, spherical
from ldmlab.pipeline.sampling import image_seed
from ldmlab.randomness import ImageNoise
from sample import own_words, sample


def test_the_great_circle_through_two_draws() -> None:
    """Orthogonal vectors of one length: cos and sin of the angle, exactly; the ends are the draws themselves."""
    a, b = torch.zeros(3, 1, 1, 2), torch.zeros(3, 1, 1, 2)
    a[..., 0], b[..., 1] = 2.0, 2.0
    share_B = torch.tensor([0.0, 1 / 3, 1.0])
    mixed = spherical(a, b, share_B)
    wanted = [[2 * math.cos(s * math.pi / 2), 2 * math.sin(s * math.pi / 2)] for s in share_B.tolist()]
    torch.testing.assert_close(mixed.flatten(1), torch.tensor(wanted))
    assert torch.equal(mixed[0], a[0])
    assert torch.equal(spherical(a, a, share_B), a)


def test_between_two_seeds_the_noise_keeps_its_size() -> None:
    """Middle of two independent draws of 12 288 numbers: variance 1, where a straight line would have ½."""
    request = Request(Asked(seeds=(1, 2), interpolate="seeds"))
    noise = request.noise_of(ImageNoise, [0, 1, 2], 3)([1] * 3, (3, 64, 64), "cpu")
    first, second = noise(), noise()
    assert torch.equal(first[0], ImageNoise([1], (3, 64, 64))()[0]) and not torch.equal(first, second)
    torch.testing.assert_close(first[2], ImageNoise([2], (3, 64, 64))()[0], rtol=0, atol=1e-6)
    assert first[1].var() == pytest.approx(1, abs=0.05) and second[1].var() == pytest.approx(1, abs=0.05)


def test_seeds_of_samples() -> None:
    two = Request(Asked(prompt=("a", "b")))
    assert two.seeds(5, 4) == [image_seed(5, 0)] * 2 + [image_seed(5, 1)] * 2  # conditions of one round share a seed
    assert Request(Asked()).seeds(5, 3) == [image_seed(5, i) for i in range(3)]  # as ever
    assert Request(Asked(prompt=("a", "b"), seeds=(7, 9))).seeds(5, 4) == [7, 7, 9, 9]
    assert Request(Asked(seeds=(7,), variations=0.5)).seeds(5, 2) == [image_seed(5, 1), image_seed(5, 2)]
    assert Request(Asked(seeds=(7,), variations=0.5)).origin(5) == 7


def test_between_two_conditions() -> None:
    seen = torch.tensor([[True, False]] * 2)
    a = Cond(tokens_BLD=torch.zeros(2, 2, 3), vector_BD=torch.ones(2, 4), seen_BL=seen)
    b = Cond(tokens_BLD=torch.ones(2, 2, 3), vector_BD=torch.ones(2, 4), seen_BL=seen.flip(1))
    mixed = a.towards(b, torch.tensor([0.0, 0.25], dtype=torch.float64))
    assert mixed.tokens_BLD is not None and mixed.seen_BL is not None
    assert mixed.tokens_BLD[0].unique().tolist() == [0] and mixed.tokens_BLD[1].unique().tolist() == [0.25]
    assert mixed.seen_BL.all() and torch.equal(mixed.vector_BD, a.vector_BD)  # type: ignore[arg-type]


def test_a_file_in_the_place_of_the_pictures_folder_is_said_first(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "pictures"):
        with pytest.raises(ConfigError, match="is a file, or lies in one, and pictures need a folder"):
            sample(load(["debug=tiny", f"out={out}", f"store={tmp_path / 'store'}"]), "")
    assert not (tmp_path / "store").exists()


def test_the_training_that_is_named_has_words_that_train_takes(tmp_path: Path) -> None:
    own = ["debug=tiny", "eval=none", f"store={tmp_path}"]
    words = [*own, "prompt=", "prompt=it's red, and round", "cond=text", "data.fields=[label,caption]", "seeds=1"]
    change, rest = own_words(words)
    with pytest.raises(UserError, match="Train it first: ") as error:
        sample(change(load(rest)), f"python src/sample.py {shlex.join(words)}")
    named = shlex.split(str(error.value).partition("Train it first: ")[2])
    assert named == ["python", "src/train.py", *own, "cond=text", "data.fields=[label,caption]"]


def test_options_hold_contents_and_no_paths() -> None:
    options = Request(
        Asked(image=("/somewhere/a.png",), strength=0.5, seeds=(3,), typed=("image=/somewhere/a.png",))
    ).options()
    assert options == {"strength": 0.5, "seeds": [3]}
