"""Addresses: what changes a result changes the id of that stage and of what stands on it, and nothing else does."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf
from option_words import replacing

from ldmlab import terminal
from ldmlab.config.compose import load
from ldmlab.errors import ConfigError
from ldmlab.pipeline.plan import KINDS, Plan, table
from ldmlab.pipeline.run import prepare
from ldmlab.pipeline.samples import sampler_options
from ldmlab.pipeline.stage import plain

BASE = ["data.train_images=64", "data.val_images=16", "data.cached=false", "ldm.fit.snapshots=[0.5]"]


def plan_of(*words: str, root: Path) -> Plan:
    return prepare(load(replacing([*BASE, f"store={root}"], words)))


def ids(plan: Plan) -> dict[str, str]:
    """Of every stage that the composition has, whether this command would make it or not; "" for one it has not."""
    has = {kind.name for kind in KINDS if kind.of(plan)}
    return {name: plan.named(name).address.id if name in has else "" for name in sorted(ALL)}


ALL = {"data", "extractor", "autoencoder", "latents", "denoiser", "samples", "scores", "reference"}
BEHIND_AE = {"autoencoder", "latents", "denoiser", "samples", "scores"}


@pytest.mark.parametrize(
    "words,changed",
    [
        ("ldm.network.dropout=0.1", {"denoiser", "samples", "scores"}),
        ("ldm.fit.lr=3e-4", {"denoiser", "samples", "scores"}),
        ("objective.loss=l1", {"denoiser", "samples", "scores"}),
        ("objective/weighting=min_snr", {"denoiser", "samples", "scores"}),
        ("objective.stratified=true", {"denoiser", "samples", "scores"}),
        ("objective.delta=2.0", set()),
        ("ldm.power_ema=[0.05,0.1]", {"denoiser", "samples", "scores"}),
        ("cond.drop=0.2", {"denoiser", "samples", "scores"}),
        ("cond.label=3", {"samples", "scores"}),
        ("eval.precision=bf16", {"samples", "scores"}),
        ("eval.precision=fp32", set()),
        ("ae.regulariser.weight=1e-5", BEHIND_AE),
        ("ae.fit.images=128", BEHIND_AE),
        ("ae.latent_scale.mode=per_channel", BEHIND_AE),
        ("ae.network.checkpointing=true", set()),
        ("ldm.network.checkpointing=true", set()),
        ("seed=1", BEHIND_AE),
        ("data.seed=1", ALL),
        ("data.flip=true", {"data", "reference"} | BEHIND_AE),
        ("sampler.steps=7", {"samples", "scores"}),
        ("eval.samples=70", {"samples", "scores"}),
        ("eval.weights=raw", {"samples", "scores"}),
        ("eval.metrics=[fid]", {"scores"}),
        ("eval.reference.images=7", {"scores", "reference"}),
        ("eval.extractor.width=16", {"extractor", "scores", "reference"}),
        ("eval.batch_size=3", set()),
        ("eval.at=[0.5,1.0]", set()),
        ("latents.dtype=float32", {"latents", "denoiser", "samples", "scores"}),
        ("runtime.micro_batch=4", set()),
        ("runtime.threads=1", set()),
        ("runtime.workers=1", set()),
        ("tracking=wandb", set()),
        ("until=autoencoder", set()),
        ("n=3", set()),
    ],
)
def test_what_changes_an_id(words: str, changed: set[str], tmp_path: Path) -> None:
    before, after = ids(plan_of(root=tmp_path)), ids(plan_of(words, root=tmp_path))
    assert {stage for stage in before if before[stage] != after[stage]} == changed


def test_ids_do_not_depend_on_the_store(tmp_path: Path) -> None:
    assert ids(plan_of(root=tmp_path / "a b")) == ids(plan_of(root=tmp_path / "c"))


def test_moving_a_folder_of_pictures_changes_no_id(tmp_path: Path) -> None:
    import shutil

    import numpy as np
    from PIL import Image

    for name in ("cat", "dog"):
        (tmp_path / "a" / name).mkdir(parents=True)
        for i in range(12):
            noise = np.random.default_rng(i).integers(0, 255, (40, 50, 3), np.uint8)
            Image.fromarray(noise).save(tmp_path / "a" / name / f"{i}.png")
    words = ["data=folder", "data.resolution=32", f"store={tmp_path / 'store'}", "ae=kl_f4_small"]
    before = prepare(load([*words, f"data.root={tmp_path / 'a'}"]))
    shutil.move(tmp_path / "a", tmp_path / "b")
    after = prepare(load([*words, f"data.root={tmp_path / 'b'}"]))
    assert ids(before) == ids(after)
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(tmp_path / "b" / "cat" / "0.png")
    assert ids(prepare(load([*words, f"data.root={tmp_path / 'b'}"])))["data"] != ids(before)["data"]


def test_identity_trains_on_images_and_any_field_goes_through_the_cache(tmp_path: Path) -> None:
    assert not plan_of("ae=identity", root=tmp_path).has("latents")
    assert plan_of("data.fields=[label,caption]", root=tmp_path).has("latents")
    assert not plan_of("latents.cache=never", root=tmp_path).has("latents")
    assert plan_of(root=tmp_path).has("latents")


def test_table_names_every_stage_with_state_and_cost(tmp_path: Path) -> None:
    plan = plan_of("eval.at=[0.5,1.0]", "dry_run=true", root=tmp_path)
    first = plan.address("autoencoder")
    with plan.store.building(first):
        plan.store.seal(first, 1.0)
    lines = table(plan, costs=True)
    stages = [line[0] for line in lines[1:]]
    assert stages == [
        "data",
        "extractor",
        "autoencoder",
        "reconstructions",
        "latents",
        "denoiser",
        *["samples", "scores"] * 2,
    ]
    assert [line[2] for line in lines[1:]] == ["ready", "will run", "done", *["will run"] * 7]
    assert "about" in lines[6][4] and "GFLOP/img" in lines[6][3]
    assert len({len(line) for line in terminal.table(lines).splitlines()}) > 1


def test_parameters_of_the_plan_are_those_of_the_paper(tmp_path: Path) -> None:
    words = [
        "ae=vq_f8",
        "ldm=unet_base",
        "data.resolution=256",
        "until=denoiser",
        "ae.loss.perceptual=null",
        "dry_run=true",
    ]
    plan = plan_of("ldm.fit.snapshots=[1.0]", *words, root=tmp_path)
    rows = {stage.name: row for stage, row in plan.rows}
    assert "395.0 M" in rows["denoiser"].what and "67.7 M" in rows["autoencoder"].what
    # docs/paper.md#sizes-of-the-networks: LDM-8 at 256² takes 114 GFLOP forward per image
    assert rows["denoiser"].flops / 3 == pytest.approx(114e9, rel=0.03)


def test_config_saved_is_the_whole_experiment(tmp_path: Path) -> None:
    cfg, choices = load([*BASE, f"store={tmp_path}"])
    again = OmegaConf.create(OmegaConf.to_yaml(cfg))
    assert again == cfg and choices["ae"] == "kl_f4_small"


def test_options_of_guidance_enter_an_id_only_where_they_act(tmp_path: Path) -> None:
    """Without guidance, its interval and its rescaling decide nothing."""

    def samples(*words: str) -> str:
        return ids(plan_of(*words, root=tmp_path))["samples"]

    cfg = load([*BASE, f"store={tmp_path}"])[0]
    assert sampler_options(plain(cfg.sampler)) == {
        "_target_": "ldmlab.samplers.ddim.DDIM", "steps": 50, "eta": 0.0, "grid": "trailing", "guidance": 1.0,
    }  # fmt: skip
    interval, rescale = "sampler.guidance_interval=[0.3,5]", "sampler.guidance_rescale=0.7"
    assert samples() == samples(interval, rescale)
    two = "sampler.guidance=2"
    assert len({samples(two), samples(two, interval), samples(two, rescale), samples(two, interval, rescale)}) == 4


def test_an_interval_beside_all_times_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"guidance_interval=\[1000\.0, 2000\.0\] holds none of the 50 times.*from 0\.\d+ to"
    ):
        plan_of("sampler.guidance=2", "sampler.guidance_interval=[1000,2000]", root=tmp_path)


@pytest.mark.parametrize("words,said", [("plms", "plms 50 (51 evaluations)"), ("dpmpp_2m_sde", "dpmpp_2m_sde 50 ·")])
def test_the_plan_counts_evaluations(words: str, said: str, tmp_path: Path) -> None:
    assert said in plan_of(f"sampler={words}", "until=samples", root=tmp_path).rows[-1][1].what


def test_without_an_extractor_nothing_is_scored_by_features(tmp_path: Path) -> None:
    plan = plan_of("eval=none", "until=samples", root=tmp_path)
    assert not plan.has("extractor") and not plan.has("scores") and plan.resolved.metrics == ()
    rows = {stage.name: row.what for stage, row in plan.rows}
    assert "rFID" not in rows["reconstructions"] and "PSNR" in rows["reconstructions"]
    with pytest.raises(ConfigError, match=r"eval=none has no feature extractor\. Use until=samples"):
        plan_of("eval=none", root=tmp_path)
    with pytest.raises(ConfigError, match="ae/loss/perceptual=shapes looks through the classifier of eval=shapes"):
        plan_of("eval=none", "until=samples", "ae/loss/perceptual=shapes", root=tmp_path)


def test_a_perceptual_distance_needs_an_extractor_with_feature_maps(tmp_path: Path) -> None:
    """SqueezeNet's file holds no shapes classifier: said by a dry run, not after the closed-form start of a training."""
    weights = Path(__file__).parents[3] / "shared/data/weights/squeezenet1_1_imagenet.pth"
    if not weights.is_file():
        pytest.skip(f"{weights.name} is not here")
    words = ["eval=squeezenet", f"eval.extractor.weights={weights}", "ae/loss/perceptual=shapes", "dry_run=true"]
    with pytest.raises(ConfigError, match=r"classifier of eval=shapes, and eval=squeezenet has none\. Set eval=shapes"):
        plan_of(*words, root=tmp_path)


def test_an_extractor_for_rfid_alone_is_noted(tmp_path: Path) -> None:
    note = "eval=none leaves both out"
    assert any(note in text for text in plan_of("until=autoencoder", root=tmp_path).notes)
    assert not any(note in text for text in plan_of(root=tmp_path).notes)


@pytest.mark.slow
@pytest.mark.timeout(30)
def test_a_dry_run_of_huge_images_computes_none_of_them(tmp_path: Path) -> None:
    words = ["debug=tiny", "data.resolution=4096", "dry_run=true", f"store={tmp_path}"]
    costs = {stage.name: row.flops for stage, row in prepare(load(words)).rows}
    assert costs["extractor"] > 1e12


def test_the_extractor_costs_what_its_own_forward_pass_counts(tmp_path: Path) -> None:
    import torch

    from ldmlab.pipeline.costs import flops_of

    plan = prepare(load(["debug=tiny", "dry_run=true", f"store={tmp_path}"]))
    net, size = plan.resolved.extractor, plan.resolved.resolution
    assert net is not None and {p.device.type for p in net.parameters()} == {"cpu"}
    costs = {stage.name: row.flops for stage, row in plan.rows}
    assert costs["extractor"] == 3 * flops_of(lambda: net(torch.zeros(1, 3, size, size)))


def test_a_schedule_that_is_shifted_by_nothing_is_noted(tmp_path: Path) -> None:
    words = ["data.resolution=32", "ae=kl_f2_quick", "objective/schedule=cosine_shifted"]
    same = plan_of(*words, "objective.schedule.base_size=16", root=tmp_path)
    assert any("base_size=16 is this latent's own size, so nothing is shifted" in note for note in same.notes)
    for other in (
        ["objective.schedule.base_size=8"],
        ["objective.schedule.base_size=null", "objective.schedule.factor=1"],
    ):
        assert not any("shifted" in note for note in plan_of(*words, *other, root=tmp_path).notes)


def test_tokens_of_more_numbers_than_the_network_has_features_are_noted(tmp_path: Path) -> None:
    words = ["data.resolution=32", "ae=identity", "ldm=dit_tiny"]
    (note,) = [n for n in plan_of(*words, "ldm.network.patch=8", root=tmp_path).notes if "a token holds" in n]
    assert "holds 192 numbers and the network has ldm.network.width=96" in note and "a width of 192 or more" in note
    for enough in (["ldm.network.patch=4"], ["ldm.network.patch=8", "ldm.network.width=192"],
                   ["ldm.network.patch=8", "objective=z0_linear"]):  # fmt: skip
        assert not any("a token holds" in n for n in plan_of(*words, *enough, root=tmp_path).notes)
