"""What a person asks of sample.py: words taken as they are typed, and what cannot be meant."""

from pathlib import Path

import pytest

from ldmlab.conditioning.asked import Asked, taken
from ldmlab.errors import ConfigError


def test_texts_are_literal() -> None:
    text = 'it\'s a ${red} star, [big] {or} "not" \\n = 5%'
    asked, rest = taken(["ae=kl_f4", f"prompt={text}", "prompt=", "n=3", "cond.label=rose"])
    assert asked.prompt == (text, "") and rest == ["ae=kl_f4", "n=3", "cond.label=rose"]
    assert (asked.conditions, asked.of(0), asked.of(3)) == (2, {"prompt": text}, {"prompt": ""})


def test_nothing_is_asked() -> None:
    asked, rest = taken(["ae=kl_f4", "label=3", "prompt"])
    assert not asked.anything and rest == ["ae=kl_f4", "label=3", "prompt"]  # Hydra's to refuse


def test_prompts_of_a_file(tmp_path: Path) -> None:
    text = "# texts\na red disc, small\n\n  a blue ring \n  # more\n"
    (tmp_path / "p.txt").write_text(text, encoding="utf-8")
    (tmp_path / "marked.txt").write_text(text[8:], encoding="utf-8-sig")  # as some editors write it
    assert taken([f"prompts={tmp_path / 'marked.txt'}"])[0].prompt == ("a red disc, small", "a blue ring")
    assert taken([f"prompts={tmp_path / 'p.txt'}"])[0].prompt == ("a red disc, small", "a blue ring")


def test_numbers_and_labels() -> None:
    asked, rest = taken(["seeds=3, 9223372036854775807", "strength=0.6", "image=a,b.png", "cond.label=[rose, 'tulip']"])
    assert asked.seeds == (3, 2**63 - 1) and asked.strength == 0.6 and asked.image == ("a,b.png",) and rest == []
    assert asked.label == ("rose", "tulip") and asked.of(1) == {"label": "tulip", "image": "a,b.png"}


def test_how_many_images() -> None:
    assert taken(["prompt=a"])[0].images(None) == 8
    assert taken(["prompt=a", "prompt=b", "prompt=c"])[0].images(None) == 9
    assert taken(["prompt=a", "prompt=b", "seeds=1,2,3"])[0].images(None) == 6
    assert taken(["variations=0.5", "seeds=1"])[0].images(None) == 8
    assert taken(["prompt=a", "seeds=1,2"])[0].images(1) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("mask=m.png", "Give the picture too"),
        ("strength=0.5", "Give the picture too"),
        ("strength=0 image=a", "strength=0 must be a number above 0"),
        ("strength=nan image=a", "strength=nan must be"),
        ("variations=1.5", "variations=1.5 must be"),
        ("strength=0.5 image=a mask=b", "two ways to use"),
        ("variations=0.5 strength=0.5 image=a", "Leave one out"),
        ("variations=0.5 seeds=1,2", "seeds=1"),
        ("interpolate=seeds", "Give the two: seeds=1,2"),
        ("interpolate=seeds seeds=1,2 prompt=a prompt=b", "one condition"),
        ("interpolate=conditions prompt=a", "Give two"),
        ("interpolate=conditions prompt=a prompt=b seeds=1,2", "keeps one seed"),
        ("interpolate=twice", "takes seeds or conditions"),
        ("prompt=a prompt=b prompt=c depth=a depth=b", "one of each for every condition"),
        ("seeds=1,-2", "whole numbers"),
        ("seeds=9223372036854775808", "whole numbers"),
        ("seeds=1 seeds=2", "given twice"),
        ("layout=", "layout= has no value"),
        ("cond.label=[rose,]", "empty class"),
        ("prompts=nowhere.txt", "No such file"),
        ("prompts=~nobody/p.txt", "No such file"),
        ("prompt=a prompts=b", "both given"),
    ],
)
def test_what_cannot_be_meant(words: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        taken(words.split())
    assert said in str(error.value) and "\n" not in str(error.value)


def test_more_images_than_seeds() -> None:
    with pytest.raises(ConfigError, match="n=3 is more than the 2 seeds"):
        Asked(prompt=("a",), seeds=(1, 2)).images(3)
    with pytest.raises(ConfigError, match="2 pictures or more"):
        Asked(seeds=(1, 2), interpolate="seeds").images(1)
