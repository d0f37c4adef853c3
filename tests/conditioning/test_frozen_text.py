"""Frozen text encoders from folders: equal to transformers' own answers, no part of the trained network, known by content."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conditioning.outside_models import TEXTS, save

from ldmlab.conditioning.frozen_text import ClipText, FrozenText, T5Text
from ldmlab.conditioning.tokenizer import FromFolder
from ldmlab.errors import ConfigError

KINDS: dict[str, type[FrozenText]] = {"clip": ClipText, "t5": T5Text}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: save(tmp_path_factory.mktemp("models") / kind, kind) for kind in KINDS}


def theirs(kind: str, folder: Path) -> Any:
    from transformers import CLIPModel, T5ForConditionalGeneration

    whole: Any = {"clip": CLIPModel, "t5": T5ForConditionalGeneration}[kind].from_pretrained(folder)
    return whole.text_model.eval() if kind == "clip" else whole.get_encoder().eval()


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_tokens_are_the_encoder_s_last_hidden_states(kind: str, mask: bool, folders: dict[str, Path]) -> None:
    made = KINDS[kind](str(folders[kind]), length=20, mask=mask)
    cond = made({"caption": TEXTS})
    ids = FromFolder(folders[kind], 20, "option")(TEXTS)
    seen = ids.seen_BL if mask else torch.ones_like(ids.seen_BL)
    expected = theirs(kind, folders[kind])(input_ids=ids.id_BL, attention_mask=seen.long()).last_hidden_state
    torch.testing.assert_close(cond.tokens_BLD, expected)
    assert (cond.seen_BL is None) != mask and made.context_dim == 32
    null = made.null(2, (4, 4), "cpu")
    torch.testing.assert_close(null.tokens_BLD, made({"caption": ["", ""]}).tokens_BLD)
    assert made.null(3, (4, 4), "meta").tokens_BLD.shape == (3, 20, 32)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_frozen_and_known_by_what_it_holds(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    made = KINDS[kind](str(folders[kind]))
    made({"caption": TEXTS})
    assert not list(made.parameters()) and not made.state_dict() and not cond_learns(made)
    moved = Path(shutil.copytree(folders[kind], tmp_path / "moved"))
    assert KINDS[kind](str(moved)).files == made.files
    other = save(tmp_path / "other", kind, seed=1)
    assert KINDS[kind](str(other)).files != made.files


def cond_learns(made: FrozenText) -> bool:
    tokens = made({"caption": TEXTS}).tokens_BLD
    return tokens is None or tokens.requires_grad


def test_what_a_model_must_be(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("/nowhere/clip", "nobody/no-such-model"):
        with pytest.raises(
            ConfigError,
            match=rf"model={name}: no such folder.* Put the model into a folder .*config\.json",
        ):
            ClipText(name)
    with pytest.raises(ConfigError, match=r"model_type='t5', and this cond takes clip .*cond=text_t5 for T5"):
        ClipText(str(folders["t5"]))
    with pytest.raises(ConfigError, match=r"length=78: .* takes 77 tokens at most"):
        ClipText(str(folders["clip"]), length=78)
    with pytest.raises(ConfigError, match=r"holds no config\.json"):
        ClipText(str(tmp_path))
    bare = Path(shutil.copytree(folders["clip"], tmp_path / "bare"))
    (bare / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"holds no \*\.safetensors"):
        ClipText(str(bare))
    whole = (folders["clip"] / "model.safetensors").read_bytes()
    (bare / "model.safetensors").write_bytes(whole[:-1])
    with pytest.raises(ConfigError, match=r"model\.safetensors is damaged .* Get it again"):
        ClipText(str(bare))
    shutil.copy(folders["t5"] / "model.safetensors", bare)
    with pytest.raises(ConfigError, match=r"lacks weights of CLIPTextModel: "):
        ClipText(str(bare))({"caption": TEXTS})
