"""Official checkpoint → ldm.weights, ae.weights → the store → export: loads strictly into the official class, bit for bit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from official_layouts import (
    FIRST_STAGES,
    SCHEDULE,
    LitEma,
    Shapes,
    UNetKind,
    bert_embedder,
    bert_tokenizer,
    class_embedder,
    differing,
    first_stage,
    module_of,
    random_state,
    schedule,
    unet,
    whole_model,
)  # fmt: skip
from torch import Tensor

from ldmlab.conditioning.base import Cond
from ldmlab.config.compose import Composed, load
from ldmlab.diffusion.denoiser import denoise_with
from ldmlab.errors import UserError
from ldmlab.interop import denoisers, weights
from ldmlab.pipeline import weights_denoiser
from ldmlab.pipeline.context import Context
from ldmlab.pipeline.denoiser import DenoiserStage
from ldmlab.pipeline.export import Written, export_denoiser, export_first_stage
from ldmlab.pipeline.first_stage import FirstStage
from ldmlab.pipeline.launch import make_accelerator
from ldmlab.pipeline.run import prepare
from ldmlab.randomness import ImageNoise
from ldmlab.samplers.ddim import DDIM

pytestmark = pytest.mark.slow

DATA = ["data.train_images=8", "data.val_images=8", "data.cached=false", "runtime.device=cpu"]
WIDTH = 32  # of the UNets; 192 to 256 in the paper
CH = 128  # of the first stages, as in the paper: narrower ones have other groups in their normalisations


def composed_of(words: list[str]) -> Composed:
    """Of words of which a later one replaces an earlier one for the same option."""
    return load(list({word.partition("=")[0]: word for word in words}.values()))


def imported(composed: Composed, denoiser: bool = True) -> Context:
    """The composition's stages, made in its store."""
    plan = prepare(composed)
    context = Context(plan.resolved.cfg, plan, make_accelerator("cpu"))
    plan.stage(FirstStage).make(context)
    if denoiser:
        plan.stage(DenoiserStage).make(context)
    return context


def state_of(file: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = torch.load(file, weights_only=True)["state_dict"]
    return found


# ---- first stages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FIRST_STAGES)
def test_first_stages_load_strictly_both_ways(name: str, tmp_path: Path) -> None:
    shapes = first_stage(FIRST_STAGES[name], CH)
    official = random_state(shapes, 0)
    extras = {"loss.logvar": torch.zeros(()), "loss.discriminator.main.0.weight": torch.ones(2)}
    torch.save({"state_dict": official | extras, "global_step": 7}, tmp_path / "model.ckpt")
    words = [f"ae={name}", f"ae.network.width={CH}", f"ae.weights={tmp_path / 'model.ckpt'}", "data.resolution=64",
             "ae.latent_scale.mode=none", "debug=tiny", "ae.network.blocks=2", f"store={tmp_path / 'store'}", *DATA]  # fmt: skip
    composed = composed_of(words)
    imported(composed, denoiser=False)
    written = export_first_stage(composed, "compvis", tmp_path / "out", "")
    back = state_of(written.files[0])
    assert list(differing(official, back)) == []
    module_of(shapes).load_state_dict(back, strict=True)


# ---- whole models --------------------------------------------------------------------------------------------------------

COMMON = [
    "debug=tiny", f"ldm.network.width={WIDTH}", f"ae.network.width={CH}", "ldm.network.blocks=2",
    "ldm.network.heads=null", "ldm.network.head_channels=16", "data.resolution=64", *DATA,
]  # fmt: skip
LAYOUTS = {
    "unconditional": (  # celebahq-ldm-vq-4: no scale of the latent
        UNetKind(3, (1, 2, 3, 4), (2, 4, 8), 2), "vq_f4", {}, False, (0.0015, 0.0195),
        ["ldm=celebahq_f4", "ldm.network.multipliers=[1,2,3,4]", "ldm.network.attention_factors=[2,4,8]", "cond=none",
         "cond.drop=0", "ae=vq_f4"],
    ),
    "unconditional, scaled": (  # lsun_churches-ldm-kl-8: scale_by_std
        UNetKind(4, (1, 2, 2, 4, 4), (1, 2, 4, 8), 2, scale_shift=True, updown=True), "kl_f8", {}, True, (0.0015, 0.0155),
        ["ldm=churches_f8", "ldm.network.multipliers=[1,2,2,4,4]", "ldm.network.attention_factors=[1,2,4,8]", "cond=none",
         "cond.drop=0", "ae=kl_f8", "objective=eps_churches", "data.resolution=128"],
    ),
    "classes": (  # cin-ldm-vq-f8, without a null class
        UNetKind(4, (1, 2, 4), (1, 2, 4), 2, context_dim=48), "vq_f8", class_embedder(10, 48), False, (0.0015, 0.0195),
        ["ldm=imagenet_f8", "ldm.network.multipliers=[1,2,4]", "ldm.network.attention_factors=[1,2,4]",
         "cond.conditioner.dim=48", "cond.drop=0", "ae=vq_f8"],
    ),
    "classes and none": (  # cin256-v2: one row more
        UNetKind(3, (1, 2, 3), (1, 2), 2, context_dim=48), "vq_f4", class_embedder(11, 48), False, (0.0015, 0.0195),
        ["ldm=imagenet_f4", "ldm.network.multipliers=[1,2,3]", "ldm.network.attention_factors=[1,2]",
         "cond.conditioner.dim=48", "ae=vq_f4"],
    ),
    "text": (  # txt2img-1p4B
        UNetKind(4, (1, 2, 4), (1, 2, 4), 2, context_dim=48), "kl_f8", bert_embedder(48, 2, 400, 77), False, (0.00085, 0.012),
        ["ldm=txt2img_f8", "ldm.network.multipliers=[1,2,4]", "ldm.network.attention_factors=[1,2,4]", "cond=text",
         "cond.conditioner.dim=48", "cond.conditioner.depth=2", "cond.conditioner.heads=8", "cond.conditioner.vocab_size=400",
         "data.fields=[label,caption]", "ae=kl_f8", "objective=eps_txt2img"],
    ),
    "inpainting": (  # inpainting_big: cond_stage_config is __is_first_stage__
        UNetKind(3, (1, 2, 3), (2, 4), 2, updown=True, concat=4), "vq_f4_noattn", "first stage", False, (0.0015, 0.0205),
        ["ldm=inpaint_f4_big", "ldm.network.multipliers=[1,2,3]", "ldm.network.attention_factors=[2,4]", "cond=inpaint",
         "ae=vq_f4_noattn", "objective=eps_layout"],
    ),
}  # fmt: skip


def official_model(name: str, file: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, Tensor]]:
    """A checkpoint as the official trainer writes it after 1234 steps: (names and shapes, tensors)."""
    kind, stage, condition, scaled, betas, _ = LAYOUTS[name]
    first = first_stage(FIRST_STAGES[stage]._replace(blocks=1), CH)
    twice = condition == "first stage"
    shapes = whole_model(unet(kind, WIDTH), first, first if twice else condition, scaled)
    state = random_state(shapes, 1) | schedule(*betas)
    state |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(1234, dtype=torch.int)}
    state |= {"scale_factor": torch.tensor(0.25)} if scaled else {}
    if twice:
        state |= {f"cond_stage_model.{name}": state[f"first_stage_model.{name}"] for name in first}
    torch.save({"state_dict": state, "epoch": 3, "global_step": 1234}, file)
    return shapes, state


def words_of(name: str, root: Path) -> list[str]:
    mode = "stored" if LAYOUTS[name][3] else "none"
    weights = [f"{part}.weights={root / 'model.ckpt'}" for part in ("ae", "ldm")]
    if name == "text":
        weights.append(f"cond.conditioner.tokenizer={bert_tokenizer(root / 'tokenizer')}")
    return [*COMMON, *LAYOUTS[name][5], *weights, f"ae.latent_scale.mode={mode}", f"store={root / 'store'}"]


def assert_came_back(shapes: Shapes, official: dict[str, Tensor], back: dict[str, Tensor]) -> None:
    """Strict names, and every bit but the schedule's, which is made again from the objective's in float64."""
    module_of(shapes).load_state_dict(back, strict=True)
    assert set(differing(official, back)) <= set(SCHEDULE)
    for buffer in SCHEDULE:
        assert torch.allclose(official[buffer], back[buffer], rtol=1e-6, atol=1e-12), buffer


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name != "text"])  # which is below, with its pipeline
def test_whole_models_load_strictly_both_ways(name: str, tmp_path: Path) -> None:
    shapes, official = official_model(name, tmp_path / "model.ckpt")
    composed = composed_of(words_of(name, tmp_path))
    imported(composed)
    written = export_denoiser(composed, "compvis", tmp_path / "out", "")
    back = state_of(written.files[0])
    assert_came_back(shapes, official, back)

    # official training goes on with its average where it stopped
    live = {f"diffusion_model.{k.removeprefix('model.diffusion_model.')}": v + 1 for k, v in official.items()
            if k.startswith("model.diffusion_model.")}  # fmt: skip
    averages = [LitEma(live), LitEma(live)]
    for average, state in zip(averages, (official, back), strict=True):
        own = {k.removeprefix("model_ema."): v for k, v in state.items() if k.startswith("model_ema.")}
        average.load_state_dict(own, strict=True)
        average.update(live)
        assert average.num_updates == 1235
    assert list(differing(averages[0].state_dict(), averages[1].state_dict())) == []


def test_a_table_without_the_null_class_stays_without_it(tmp_path: Path) -> None:
    """From the file to the store, to both exports, and back in: guidance against a row nobody trained is refused."""
    official_model("classes", tmp_path / "model.ckpt")
    words = words_of("classes", tmp_path)
    context = imported(composed_of(words))
    folder = context.store.folder(context.plan.stage(DenoiserStage).address)
    files = {
        "store": folder,
        "compvis": export_denoiser(composed_of(words), "compvis", tmp_path / "compvis", "").files[0].parent,
        "diffusers": export_denoiser(composed_of(words), "diffusers", tmp_path / "diffusers", "")
        .files[0]
        .parent.parent,
    }
    for place in files.values():
        again = [*words, f"ldm.weights={place}", "eval.weights=raw"]
        with pytest.raises(UserError, match="trained without the null class"):
            prepare(composed_of([*again, "cond.drop=0.1"]))
        with pytest.raises(UserError, match=r"guidance"):
            prepare(composed_of([*again, "sampler.guidance=2"]))
        prepare(composed_of(again))
    readme = (tmp_path / "diffusers" / "README.md").read_text()
    assert "No pipeline of diffusers loads this folder whole" in readme and "no row means no class" in readme
    config = json.loads((tmp_path / "diffusers" / "class_embedder" / "config.json").read_text())
    assert config["num_embeddings"] == 10
    assert context.plan.resolved.denoiser.state_dict()[weights_denoiser.TABLE].shape == (
        11,
        48,
    )


def test_a_scale_that_is_an_option_is_no_tensor(tmp_path: Path) -> None:
    """mode=given (Stable Diffusion's 0.18215) is scale_factor of the official yaml: no buffer there, none here."""
    official_model("unconditional", tmp_path / "model.ckpt")
    words = [*words_of("unconditional", tmp_path), "ae.latent_scale.mode=given", "ae.latent_scale.scale=0.18215"]
    imported(composed_of(words))
    written: Written = export_denoiser(composed_of(words), "compvis", tmp_path / "out", "")
    assert "scale_factor" not in state_of(written.files[0])
    assert any("scale_factor: 0.18215 goes into the official model's yaml" in note for note in written.notes)
    assert weights.read(written.files[0]).scale is not None  # ours reads it in our own note


# ---- whole pipelines of diffusers ----------------------------------------------------------------------------------------


def largest_difference(context: Context, out: Path, written: Written, steps: int, texts: tuple[str, ...] = ()) -> float:
    """Of images in [0, 1]: diffusers' own loading and sampling against ours, from the same noise (and for the same two texts)."""
    diffusers = pytest.importorskip("diffusers", reason="the oracle of this test; pip install -e .[dev]")
    assert out / "model_index.json" in written.files and not (out / "README.md").exists()
    name = json.loads((out / "model_index.json").read_text())["_class_name"]
    pipe = getattr(diffusers, name).from_pretrained(out)
    pipe.set_progress_bar_config(disable=True)
    asked: dict[str, Any] = {"prompt": list(texts)} if texts else {"batch_size": 2}
    theirs_BHWC = pipe(
        **asked, generator=torch.Generator().manual_seed(3), num_inference_steps=steps, output_type="np"
    ).images
    ae, model = context.plan.stage(FirstStage).load(context), context.plan.stage(DenoiserStage).load(context)
    shape = (2, *ae.latent_shape(context.data.resolution))
    zT_BCHW = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    objective = context.plan.resolved.objective
    noise = ImageNoise([0, 1], shape[1:], torch.device("cpu"))
    with torch.no_grad():
        cond = model.conditioner({"caption": list(texts)}) if texts else Cond()
        z_BCHW = DDIM(steps=steps, grid="official")(
            denoise_with(model, objective), zT_BCHW, objective.schedule, cond, noise
        )
        ours_BHWC = (ae.decode(z_BCHW) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert ours_BHWC.std() > 0.02
    return float(np.abs(ours_BHWC - theirs_BHWC).max())


@pytest.mark.parametrize("name", ["unconditional", "unconditional, scaled"])
def test_an_unconditional_model_is_a_whole_pipeline(name: str, tmp_path: Path) -> None:
    official_model(name, tmp_path / "model.ckpt")
    words = words_of(name, tmp_path)
    context = imported(composed_of(words))
    written = export_denoiser(composed_of(words), "diffusers", tmp_path / "out", "")
    assert largest_difference(context, tmp_path / "out", written, steps=4) < 2e-4


def test_a_model_of_texts_is_a_whole_pipeline_both_ways(tmp_path: Path) -> None:
    """LDMTextToImagePipeline: its own tokenizer, LDMBertModel, UNet, first stage and scheduler; read back, the same tensors."""
    shapes, official = official_model("text", tmp_path / "model.ckpt")
    words, out = words_of("text", tmp_path), tmp_path / "out"
    context = imported(composed_of(words))
    assert_came_back(
        shapes, official, state_of(export_denoiser(composed_of(words), "compvis", tmp_path / "back", "").files[0])
    )
    written = export_denoiser(composed_of(words), "diffusers", out, "")
    texts = ("a red star", "two blue discs on a navy background")
    assert largest_difference(context, out, written, steps=2, texts=texts) < 2e-4
    one, two = denoisers.read(tmp_path / "model.ckpt"), denoisers.read(out)
    assert one.copies.ema is not None and list(differing(one.copies.ema, two.copies.raw)) == []
    assert len(two.unused) == 2 and list(differing(one.unused, two.unused)) == []
    back = [f"ldm.weights={out}", f"ae.weights={out / 'vqvae'}", f"cond.conditioner.tokenizer={out / 'tokenizer'}"]
    prepare(composed_of([*words, *back, "eval.weights=raw"]))


def test_a_model_of_pixels_is_a_whole_pipeline_without_a_first_stage(tmp_path: Path) -> None:
    kind = UNetKind(3, (1, 2), (2,), 1)
    torch.save({"state_dict": random_state(unet(kind, WIDTH), 0)}, tmp_path / "unet.ckpt")
    words = ["debug=tiny", "ae=identity", "cond=none", "cond.drop=0", "data.resolution=16", "ldm.network.heads=2",
             f"ldm.weights={tmp_path / 'unet.ckpt'}", "eval.weights=raw", "ae.latent_scale.mode=none",
             f"store={tmp_path / 'store'}", *DATA]  # fmt: skip
    context = imported(composed_of(words))
    written = export_denoiser(composed_of(words), "diffusers", tmp_path / "out", "")
    assert largest_difference(context, tmp_path / "out", written, steps=4) < 2e-4
