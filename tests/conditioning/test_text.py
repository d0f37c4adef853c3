"""Texts as tokens: the tokenizer, the published transformer, the empty prompt, hidden padding."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ldmlab import build
from ldmlab.conditioning.base import Cond
from ldmlab.conditioning.compose import Compose
from ldmlab.conditioning.text import Text
from ldmlab.conditioning.tokenizer import FILE, Trained, train
from ldmlab.data.shapes import Shapes
from ldmlab.errors import ConfigError, DataError
from ldmlab.networks.dit import DiT
from ldmlab.networks.token_transformer import TokenTransformer
from ldmlab.networks.unet import UNet

CAPTIONS = [s["caption"] for s in Shapes(16, train_images=300, fields=["caption"]).__getitems__(list(range(300)))]
SIZES = {"dim": 32, "depth": 2, "heads": 2, "vocab_size": 400}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("tokenizer")
    train(CAPTIONS, SIZES["vocab_size"]).save(str(found / FILE))
    return found


def test_a_tokenizer_is_a_function_of_the_texts_and_takes_any_text(folder: Path) -> None:
    first, again = (train(CAPTIONS, 400).to_str(pretty=True) for _ in range(2))
    assert first == again == (folder / FILE).read_text() != train(CAPTIONS[:50], 400).to_str(pretty=True)
    made, reader = train(CAPTIONS, 400), Trained(folder, 48)
    for text in [*CAPTIONS[:20], "ein gelber Kreis — 黄色 🟡"]:
        assert made.decode(made.encode(text).ids).strip() == text.lower()  # nothing is unknown to bytes
    id_BL, seen_BL = reader(["A  Large red star", "a large red star", ""])
    assert id_BL.shape == seen_BL.shape == (3, 48) and reader.size <= 400
    assert not torch.equal(id_BL[0], id_BL[1])  # two spaces are two
    assert id_BL[2].tolist() == [1, 2] + [0] * 46 and seen_BL.sum(dim=1).tolist()[1:] == [6, 2]
    short = Trained(folder, 4)(["a large red star"]).id_BL[0].tolist()
    assert Trained(folder, 4).cuts("a large red star") and not Trained(folder, 6).cuts("a large red star")
    assert short[0] == 1 and short[-1] == 2 and short[1:3] == id_BL[1, 1:3].tolist()  # cut, and still ended
    with pytest.raises(DataError, match=r"tokenizer\.json: no tokenizer"):
        Trained(folder.parent, 4)


def official(tensors: dict[str, Tensor], id_BL: Tensor, heads: int, seen_BL: Tensor | None) -> Tensor:
    """x-transformers' encoder written out: pre-norm, softmax(q kᵀ / 8) v, GELU, under the names of official checkpoints."""

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]

    h = tensors["token_emb.weight"][id_BL] + tensors["pos_emb.emb.weight"][: id_BL.shape[1]]
    depth = 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith("attn_layers"))
    for i in range(0, depth, 2):
        name = f"attn_layers.layers.{i}"
        x = norm(h, f"{name}.0")
        q, k, v = (
            torch.einsum("bld,hcd->bhlc", x, tensors[f"{name}.1.to_{which}.weight"].unflatten(0, (heads, 64)))
            for which in "qkv"
        )
        scores = torch.einsum("bhlc,bhmc->bhlm", q, k) / 8
        if seen_BL is not None:
            scores = scores.masked_fill(~seen_BL[:, None, None, :], -torch.inf)
        out = torch.einsum("bhlm,bhmc->blhc", scores.softmax(-1), v).flatten(2)
        h = h + out @ tensors[f"{name}.1.to_out.weight"].T + tensors[f"{name}.1.to_out.bias"]
        name = f"attn_layers.layers.{i + 1}"
        x = norm(h, f"{name}.0") @ tensors[f"{name}.1.net.0.0.weight"].T + tensors[f"{name}.1.net.0.0.bias"]
        x = 0.5 * x * (1 + torch.erf(x / 2**0.5))
        h = h + x @ tensors[f"{name}.1.net.2.weight"].T + tensors[f"{name}.1.net.2.bias"]
    return norm(h, "norm")


@pytest.mark.parametrize("masked", [False, True])
def test_the_transformer_computes_the_published_one_under_its_names(masked: bool) -> None:
    torch.manual_seed(0)
    net = TokenTransformer(50, 9, dim=32, depth=3, heads=2).double()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    id_BL = torch.randint(0, 50, (4, 7))
    seen_BL = torch.arange(7) < torch.tensor([1, 3, 5, 7])[:, None] if masked else None
    torch.testing.assert_close(net(id_BL, seen_BL), official(dict(net.state_dict()), id_BL, 2, seen_BL))


@pytest.mark.parametrize("sizes,millions", [((30522, 77, 1280, 32), 542.90), ((8192, 92, 512, 16), 54.66)])
def test_published_sizes(sizes: tuple[int, int, int, int], millions: float) -> None:
    """543 M and, of the printed 306 M of the layout model, what UNet (246.28 M) and the unused logits head (4.20 M) leave."""
    with build.shapes_only():
        net = TokenTransformer(*sizes)
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)


def test_null_is_the_empty_prompt_and_examples_are_dropped_each_for_itself(folder: Path) -> None:
    torch.manual_seed(0)
    text = Text(folder, length=12, **SIZES)
    null, empty = text.null(3, (4, 4), "cpu"), text({"caption": ["", "", ""]})
    torch.testing.assert_close(null.tokens_BLD, empty.tokens_BLD)
    asked = text({"caption": CAPTIONS[:3]})
    some = asked.select(torch.tensor([False, True, False]), null)
    assert torch.equal(some.tokens_BLD[1], null.tokens_BLD[1]) and torch.equal(
        some.tokens_BLD[::2], asked.tokens_BLD[::2]
    )
    assert Text(None, length=12, **SIZES).null(2, (4, 4), "meta").tokens_BLD.shape == (
        2,
        12,
        32,
    )  # a plan has no tokenizer


def networks() -> Sequence[torch.nn.Module]:
    torch.manual_seed(1)
    unet = UNet(
        width=32,
        multipliers=[1, 2],
        blocks=1,
        attention_factors=[2],
        heads=2,
        in_channels=3,
        out_channels=3,
        context_dim=32,
    )
    dit = DiT(width=32, blocks=2, heads=2, patch=2, in_channels=3, out_channels=3, context_dim=32, latent_size=4)
    for net in (unet, dit):
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return [unet.eval(), dit.eval()]


@pytest.mark.parametrize("which", [0, 1], ids=["unet", "dit"])
@torch.no_grad()
def test_hidden_padding_changes_nothing_and_seen_padding_does(which: int, folder: Path) -> None:
    """With the mask, a caption padded to 48 and to 32 tokens gives the same prediction; keys may be read before."""
    net, batch = networks()[which], {"caption": CAPTIONS[:3]}
    z, t = torch.randn(3, 3, 4, 4), torch.tensor([1, 500, 900])
    predicted: dict[bool, list[Tensor]] = {True: [], False: []}
    for mask in (True, False):
        torch.manual_seed(0)
        long = Text(folder, length=48, mask=mask, **SIZES)
        short = Text(folder, length=32, mask=mask, **SIZES)
        weights = long.state_dict()
        weights["transformer.pos_emb.emb.weight"] = weights["transformer.pos_emb.emb.weight"][:32]
        short.load_state_dict(weights)
        for text in (long, short):
            cond = text(batch)
            predicted[mask].append(net(z, t, cond))
            torch.testing.assert_close(net(z, t, net.prepared(cond)), predicted[mask][-1])
    torch.testing.assert_close(*predicted[True])
    assert (predicted[False][0] - predicted[False][1]).abs().max() > 1e-3


def test_masks_of_composed_conditions(folder: Path) -> None:
    """A masked text beside one without a mask: the tokens of the latter are all seen, in condition and null alike."""
    both = Compose([Text(folder, length=8, mask=True, **SIZES), Text(folder, length=5, **SIZES)])
    batch = {"caption": ["a red star", ""]}
    cond, null = both(batch), both.null(2, (4, 4), "cpu")
    assert cond.seen_BL is not None and cond.seen_BL.sum(dim=1).tolist() == [5 + 5, 2 + 5]
    assert cond.cat(null).seen_BL.shape == (4, 13) and cond.repeat(2).seen_BL.shape == (4, 13)
    assert torch.equal(
        cond.select(torch.tensor([True, False]), null).seen_BL, torch.stack([null.seen_BL[0], cond.seen_BL[1]])
    )
    with pytest.raises(ValueError, match="a token mask"):
        cond.cat(Cond(tokens_BLD=cond.tokens_BLD))


def test_what_a_tokenizer_folder_must_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cond\.conditioner\.tokenizer=/nowhere: no such folder"):
        Text(tokenizer="/nowhere", **SIZES)
    with pytest.raises(ConfigError, match=r"holds no tokenizer that transformers can read .*vocab\.txt"):
        Text(tokenizer=str(tmp_path), **SIZES)


def test_a_bert_tokenizer_from_a_folder(tmp_path: Path) -> None:
    """As published: [CLS] … [SEP] and padding with number 0; its content, not its place, enters ids."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "star", "##s"]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vocab.txt").write_text("\n".join(words) + "\n")
        (tmp_path / name / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizerFast"}')
    text, moved = (Text(tokenizer=str(tmp_path / name), length=8, **SIZES) for name in ("one", "two"))
    assert text.tokenizer is not None and text.tokenizer(["A red stars"]).id_BL.tolist() == [[2, 5, 6, 7, 8, 3, 0, 0]]
    assert text.files == moved.files and not text.learns_tokens
    with (tmp_path / "two" / "vocab.txt").open("a") as file:
        file.write("blue\n")
    assert Text(tokenizer=str(tmp_path / "two"), length=8, **SIZES).files != text.files
    (tmp_path / "one" / "vocab.txt").write_text("\n".join([*words, *(f"w{i}" for i in range(400))]))
    with pytest.raises(
        ConfigError, match=r"has 409 tokens, and cond\.conditioner\.vocab_size=400 rows. Set .*vocab_size=409"
    ):
        Text(tokenizer=str(tmp_path / "one"), length=8, **SIZES)
