"""Condition models and class vectors as others write them: parity with diffusers' modules both ways, strict names, refusals."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from official_layouts import bert_embedder
from safetensors.torch import load_file, save_file
from test_unet_weights import TOLERANCE, equal, facts_of, randomise, write
from torch import Tensor, nn

from ldmlab.conditioning.base import Cond
from ldmlab.conditioning.class_label import ClassLabel
from ldmlab.conditioning.tokenizer import FILE, FromFolder, Trained, hub_config, train
from ldmlab.diffusion.denoiser import Denoiser
from ldmlab.errors import ConfigError, WeightsError
from ldmlab.interop import denoisers, token_layouts
from ldmlab.networks.dit import DiT
from ldmlab.networks.token_transformer import TokenTransformer
from ldmlab.networks.unet import UNet

diffusers = pytest.importorskip("diffusers", reason="the oracle of these tests; pip install -e .[dev]")

CLASSES = 10
SMALL_UNET: dict[str, Any] = {"width": 32, "multipliers": [1, 2], "blocks": 1, "attention_factors": [2], "heads": 2}
SMALL_DIT: dict[str, Any] = {"width": 24, "blocks": 2, "heads": 2, "patch": 2, "frequency_shift": 1}


def close(mine: Tensor, theirs: Tensor) -> None:
    assert mine.shape == theirs.shape and theirs.abs().max() > 0.1
    assert float((mine - theirs).abs().max() / theirs.abs().max()) <= TOLERANCE


def quiet(model: nn.Module, seed: int) -> Any:
    """Filled with distinct numbers, and not training."""
    randomise(model, seed)
    return model.eval().requires_grad_(False)


def refused(path: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        denoisers.read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit(file: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    file.write_text(json.dumps(change(json.loads(file.read_text()))))


# ---- the transformer that reads texts and layouts ------------------------------------------------------------------------

BERT = {"vocab_size": 50, "length": 9, "dim": 24, "depth": 3, "heads": 2}


def transformer(**changes: int) -> tuple[nn.Module, dict[str, Tensor]]:
    made = quiet(nn.ModuleDict({"transformer": TokenTransformer(**{**BERT, **changes})}), 1)
    return made["transformer"].requires_grad_(False), made.state_dict()


def logits(seed: int = 2) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {"transformer.to_logits.weight": torch.randn(50, 24), "transformer.to_logits.bias": torch.randn(50)}


def test_the_official_class_has_exactly_these_tensors() -> None:
    """BERTEmbedder as written down from its code; a head that was imported stays, one that never was is zeros."""
    _, ours = transformer(heads=8)
    shapes = bert_embedder(24, 3, 50, 9)
    for unused in (logits(), {}):
        whole = token_layouts.with_logits(ours, unused)
        assert {name: tuple(tensor.shape) for name, tensor in whole.items()} == shapes
        assert all(torch.equal(whole[name], tensor) for name, tensor in {**ours, **unused}.items())
    assert not whole["transformer.to_logits.weight"].any()
    token_layouts.check_official(ours)
    with pytest.raises(WeightsError, match=r"cond.conditioner.heads=2: the official BERTEmbedder has 8 heads of 64"):
        token_layouts.check_official(transformer()[1])


def test_ldm_bert_computes_what_ours_does_both_ways(tmp_path: Path) -> None:
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertModel

    net, ours = transformer()
    config = token_layouts.make_config(ours)
    files = {"config.json": json.dumps(config).encode()}
    save_file(
        token_layouts.to_bert(ours, logits()), write(tmp_path, files) / "model.safetensors", metadata={"format": "pt"}
    )
    peer, info = LDMBertModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    id_BL = torch.randint(0, 50, (3, 9), generator=torch.Generator().manual_seed(3))
    close(net(id_BL), peer.eval().requires_grad_(False)(id_BL)[0])

    quiet(peer, 5).save_pretrained(tmp_path / "theirs")
    theirs = load_file(tmp_path / "theirs" / "model.safetensors")
    back, unused = token_layouts.from_bert(theirs, json.loads((tmp_path / "theirs" / "config.json").read_text()))
    net.load_state_dict({name.removeprefix("transformer."): tensor for name, tensor in back.items()})
    close(net(id_BL), peer(id_BL)[0])
    assert equal(token_layouts.to_bert(back, unused), theirs)


def test_another_text_model_is_refused_by_its_field() -> None:
    ours = transformer()[1]
    theirs, config = token_layouts.to_bert(ours, {}), token_layouts.make_config(ours)
    for change, message in (
        ({"activation_function": "relu"}, "activation_function=relu; this network has gelu"),
        ({"head_dim": 32}, "head_dim=32; this network has 64"),
        ({"scale_embedding": True}, "scale_embedding=True"),
        ({"encoder_attention_heads": 4}, "encoder_attention_heads=4 of 64 features, and its weights have 128"),
        ({"model_type": "clip_text_model"}, "model_type=clip_text_model"),
    ):
        with pytest.raises(WeightsError, match=message):
            token_layouts.from_bert(theirs, config | change)
    with pytest.raises(WeightsError, match=r"model\.pooler.weight: LDMBertModel has no such name"):
        token_layouts.from_bert(theirs | {"model.pooler.weight": torch.ones(1)}, config)


def test_a_trained_tokenizer_gives_the_same_numbers_from_an_export(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    texts = ["a large red star on a navy background", "two small discs", "ein Kreis — 黄色 🟡", "", "star " * 30]
    train(texts[:2], 300).save(str(tmp_path / FILE))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(hub_config(12)))
    own, hub = Trained(tmp_path, 12)(texts), FromFolder(tmp_path, 12, "option")(texts)
    assert torch.equal(own.id_BL, hub.id_BL) and torch.equal(own.seen_BL, hub.seen_BL)
    pipelines = PreTrainedTokenizerFast.from_pretrained(tmp_path)  # as LDMTextToImagePipeline loads and asks it
    asked = pipelines(texts, padding="max_length", max_length=12, truncation=True, return_tensors="pt")
    assert torch.equal(own.id_BL, asked.input_ids)


# ---- classes as a vector: UNet2DModel ------------------------------------------------------------------------------------


def class_denoiser(network: nn.Module, dim: int) -> Denoiser:
    model = Denoiser(network, ClassLabel(CLASSES, dim, "vector"))  # type: ignore[arg-type]
    return quiet(model, 3)


def unet_of_classes(vector_mlp: bool) -> Denoiser:
    dim = 20 if vector_mlp else 128
    return class_denoiser(UNet(4, 4, vector_dim=dim, vector_mlp=vector_mlp, **SMALL_UNET), dim)


def exported(model: Denoiser, folder: Path, unused: dict[str, Tensor] | None = None) -> Path:
    facts = facts_of(model.network)._replace(size=8, unused=unused or {})
    return write(folder, denoisers.as_diffusers(model.state_dict(), facts))


def assert_same(model: Denoiser, peer: Any, channels: int = 4) -> None:
    """Every class and none, at several times."""
    z_BCHW = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    t_B, label_B = torch.tensor([0, 311, 999]), torch.tensor([0, 4, CLASSES])
    mine = model.network(z_BCHW, t_B, Cond(vector_BD=model.conditioner.embedding(label_B)))
    close(mine, peer(z_BCHW, t_B, class_labels=label_B, return_dict=False)[0][:, :channels])


def loaded(cls: Any, folder: Path) -> Any:
    peer, info = cls.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return peer.eval().requires_grad_(False)


@pytest.mark.parametrize("vector_mlp", [True, False])
def test_class_vectors_of_a_unet_both_ways(vector_mlp: bool, tmp_path: Path) -> None:
    """The MLP of our table becomes a plain table; read back, that is a network without the MLP, and the same file again."""
    model = unet_of_classes(vector_mlp)
    peer = loaded(diffusers.UNet2DModel, exported(model, tmp_path / "a") / "unet")
    assert_same(model, peer)
    plain, found = unet_of_classes(False), denoisers.read(tmp_path / "a")
    plain.load_state_dict(found.copies.raw)
    assert_same(plain, peer)
    if not vector_mlp:
        assert equal(found.copies.raw, model.state_dict())
    again = exported(plain, tmp_path / "b") / "unet" / "diffusion_pytorch_model.safetensors"
    assert again.read_bytes() == (tmp_path / "a" / "unet" / again.name).read_bytes()

    quiet(peer, 8).save_pretrained(tmp_path / "theirs")
    plain.load_state_dict(denoisers.read(tmp_path / "theirs").copies.raw)
    assert_same(plain, peer)


def test_a_vector_as_it_is_must_be_as_wide_as_the_time_embedding() -> None:
    with pytest.raises(ConfigError, match=r"128 features and the vector 20. Set cond.conditioner.dim=128"):
        UNet(4, 4, vector_dim=20, vector_mlp=False, **SMALL_UNET)


# ---- DiT -----------------------------------------------------------------------------------------------------------------


def dit(dim: int = 24, **changes: Any) -> Denoiser:
    return class_denoiser(DiT(4, 4, vector_dim=dim, latent_size=8, **{**SMALL_DIT, **changes}), dim)


@pytest.mark.parametrize("dim", [24, 20])
def test_dit_both_ways(dim: int, tmp_path: Path) -> None:
    model = dit(dim)
    peer = loaded(diffusers.DiTTransformer2DModel, exported(model, tmp_path / "a") / "transformer")
    assert_same(model, peer)
    plain, found = dit(), denoisers.read(tmp_path / "a")
    assert (
        found.layout == "diffusers"
        and found.heads == {"blocks.0.attn": 2, "blocks.1.attn": 2}
        and found.target == "eps"
    )
    plain.load_state_dict(found.copies.raw)
    assert_same(plain, peer)
    if dim == 24:
        assert equal(found.copies.raw, model.state_dict())


def test_a_dit_that_predicts_a_variance_too(tmp_path: Path) -> None:
    """The published ones: 2c channels out, of which the first c are ours; the others are kept, and the same file comes back."""
    config = {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 8, "num_layers": 2,
              "sample_size": 8, "num_embeds_ada_norm": CLASSES, "norm_eps": 1e-6}  # fmt: skip
    peer = quiet(diffusers.DiTTransformer2DModel(**config), 4)
    for block in peer.transformer_blocks[1:]:
        block.norm1.emb.load_state_dict(peer.transformer_blocks[0].norm1.emb.state_dict())
    peer.save_pretrained(tmp_path / "theirs" / "transformer")
    found, model = denoisers.read(tmp_path / "theirs"), dit()
    model.load_state_dict(found.copies.raw)
    assert_same(model, peer)
    file = "transformer/diffusion_pytorch_model.safetensors"
    assert equal(
        load_file(exported(model, tmp_path / "again", dict(found.unused)) / file), load_file(tmp_path / "theirs" / file)
    )
    said = json.loads((tmp_path / "again" / "transformer" / "config.json").read_text())
    assert said["out_channels"] == 8 and loaded(diffusers.DiTTransformer2DModel, tmp_path / "again" / "transformer")
    digests = {denoisers.digest(tmp_path / "theirs"), denoisers.digest(tmp_path / "again")}
    assert len(digests) == 1 and denoisers.digest(exported(model, tmp_path / "without")) not in digests


def test_published_folders_are_read(tmp_path: Path) -> None:
    """config.json as older versions wrote it (Transformer2DModel, no norm_eps), fixed positions among the tensors."""
    folder = exported(dit(), tmp_path) / "transformer"
    own = denoisers.read(tmp_path).copies.raw
    older = {"_class_name": "Transformer2DModel", "cross_attention_dim": None, "norm_num_groups": 32, "num_vector_embeds": None,
             "only_cross_attention": False, "upcast_attention": False, "use_linear_projection": False}  # fmt: skip
    edit(folder / "config.json", lambda said: {k: v for k, v in said.items() if k != "norm_eps"} | older)
    file = folder / "diffusion_pytorch_model.safetensors"
    torch.save(
        load_file(file) | {"pos_embed.pos_embed": torch.zeros(1, 16, 24)}, folder / "diffusion_pytorch_model.bin"
    )
    file.unlink()
    assert equal(denoisers.read(tmp_path).copies.raw, own)


def test_a_dit_of_a_thousand_classes_is_a_whole_pipeline(tmp_path: Path) -> None:
    """Its null class is row 1000; the first stage is an AutoencoderKL."""
    from ldmlab import build
    from ldmlab.config.compose import load
    from ldmlab.interop import weights
    from ldmlab.pipeline.weights_first_stage import groups_of

    ae = build.autoencoder(
        load(
            [
                "ae=kl_f4",
                "ae.network.width=32",
                "ae.network.c=4",
                "ae.network.blocks=1",
                "ae.network.multipliers=[1,1,1]",
            ]
        ).cfg
    )
    model = quiet(Denoiser(dit().network, ClassLabel(1000, 24, "vector")), 3)  # type: ignore[arg-type]
    parts = denoisers.as_diffusers(model.state_dict(), facts_of(model.network)._replace(size=8))
    stage = weights.as_diffusers(ae.state_dict(), groups_of(ae), 32)
    pipe = diffusers.DiTPipeline.from_pretrained(
        write(tmp_path, denoisers.as_pipeline("DiTPipeline", parts, stage, {}))
    )
    pipe.set_progress_bar_config(disable=True)
    steps: dict[str, Any] = {"num_inference_steps": 2, "output_type": "np", "guidance_scale": 3.0}
    one, other = (pipe([label], generator=torch.Generator().manual_seed(1), **steps).images for label in (4, 5))
    assert one.shape == (1, 32, 32, 3) and abs(one - other).max() > 1e-3
    assert torch.equal(pipe.transformer.proj_out_2.weight, model.network.final_layer.linear.weight)  # type: ignore[union-attr]


def test_frequencies_of_the_time_matter(tmp_path: Path) -> None:
    """What the note of an import is for: the same weights with the authors' frequencies compute something else."""
    z_BCHW, t_B, cond = torch.randn(2, 4, 8, 8), torch.tensor([10, 900]), Cond(vector_BD=torch.randn(2, 24))
    one, other = (dit(frequency_shift=shift).network(z_BCHW, t_B, cond) for shift in (1, 0))
    assert (one - other).abs().max() > 1e-2 * one.abs().max()


@pytest.mark.parametrize(
    "change,message",
    [
        ({"norm_type": "ada_norm_single"}, "norm_type=ada_norm_single; this network has ada_norm_zero"),
        ({"activation_fn": "geglu"}, "activation_fn=geglu; this network has gelu-approximate"),
        (
            {"num_attention_heads": 5},
            "num_attention_heads=5 of attention_head_dim=12 features, and the network is 24 wide",
        ),
        ({"_class_name": "PixArtTransformer2DModel"}, "is of a PixArtTransformer2DModel"),
        ({"cross_attention_dim": 32}, "cross_attention_dim=32"),
        ({"newly_invented": 2}, "newly_invented=2, a field that is not known here"),
    ],
)
def test_another_transformer_is_refused_by_its_field(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    edit(exported(dit(), tmp_path) / "transformer" / "config.json", lambda said: said | change)
    assert message in refused(tmp_path)


def test_tensors_of_another_transformer_are_refused(tmp_path: Path) -> None:
    file = exported(dit(), tmp_path) / "transformer" / "diffusion_pytorch_model.safetensors"
    whole, table = load_file(file), "norm1.emb.class_embedder.embedding_table.weight"
    name = f"transformer_blocks.1.{table}"
    for changed, message in (
        (whole | {name: whole[name] + 1}, f"transformer_blocks.1.{table} differs between the blocks"),
        (
            whole | {"transformer_blocks.0.norm3.weight": torch.ones(1)},
            "norm3.weight: no DiT of diffusers has this name",
        ),
        (
            {k: v for k, v in whole.items() if "to_k.bias" not in k},
            "transformer_blocks.0.attn1 lacks one of to_q, to_k, to_v (bias)",
        ),
        (whole | {"transformer_blocks.one.attn1.to_q.bias": torch.ones(1)}, "those of no whole DiT of diffusers"),
    ):
        save_file(changed, file)
        assert message in refused(tmp_path)


def test_what_diffusers_has_no_place_for_is_refused() -> None:
    tokens = Denoiser(DiT(4, 4, context_dim=24, **SMALL_DIT), ClassLabel(CLASSES, 24))  # type: ignore[arg-type]
    without = DiT(4, 4, **SMALL_DIT)
    for tensors, message in (
        (tokens.state_dict(), "diffusers' DiT has no place for it"),
        ({f"network.{name}": tensor for name, tensor in without.state_dict().items()}, "always has a table of classes"),
    ):
        with pytest.raises(WeightsError, match=message):
            denoisers.as_diffusers(tensors, facts_of(without))
