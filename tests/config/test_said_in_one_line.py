"""What a person may type wrongly, found by testing from outside: each is one line with the option's path, the rule and a way out."""

import pytest

from ldmlab.config.compose import group_options, load
from ldmlab.errors import ConfigError

KL = "ae=kl_f8"
SCALE = "ae.latent_scale.mode=given ae.latent_scale.scale=1"

WRONG: dict[str, list[str]] = {
    # ranges, finiteness and words, on the declaration
    "ae.decoder_fit.precision=bf61": ["ae.decoder_fit.precision must be one of fp32, bf16", "'bf61'", "Did you mean 'bf16'"],
    "ae.decoder_fit.betas=[0.9]": ["ae.decoder_fit.betas must be two numbers in [0, 1)"],
    "ae.decoder_fit.ema=2": ["ae.decoder_fit.ema must be between 0 and 1"],
    "ae.decoder_fit.snapshots=[3]": ["ae.decoder_fit.snapshots must be between 0 and 1"],
    "sampler.guidance=nan": ["sampler.guidance must be between 0 and 10000", "nan", "Leave it out"],
    "sampler.guidance=1e300": ["sampler.guidance must be between 0 and 10000"],
    "ae.fit.weight_decay=nan": ["ae.fit.weight_decay must be"],
    "ldm.fit.weight_decay=-1": ["ldm.fit.weight_decay must be between 0 and 100"],
    "ldm.fit.clip=inf": ["ldm.fit.clip must be"],
    "ldm.fit.clip=nan": ["ldm.fit.clip must be"],
    "ae.fit.clip=nan": ["ae.fit.clip must be"],
    "ae.fit.clip=-1": ["ae.fit.clip must be greater than 0"],
    "ae.fit.lr=inf": ["ae.fit.lr must be"],
    "ae.fit.weight_decay=-1": ["ae.fit.weight_decay must be between 0 and 100"],
    "ae.decoder_fit.weight_decay=-1": ["ae.decoder_fit.weight_decay must be between 0 and 100"],
    "eval.extractor_fit.weight_decay=-1": ["eval.extractor_fit.weight_decay must be between 0 and 100"],
    "ldm.fit.clip=0": ["ldm.fit.clip must be greater than 0", "or null"],
    "ldm.fit.clip=-1": ["ldm.fit.clip must be greater than 0"],
    "ldm.fit.lr=nan": ["ldm.fit.lr must be"],
    "ldm.fit.warmup=-1": ["ldm.fit.warmup must be"],
    "ldm.fit.cooldown=-1": ["ldm.fit.cooldown must be"],
    "ae.regulariser.weight=nan": ["ae.regulariser.weight must be between"],
    "ae=vq_f8 ae.regulariser.beta=inf": ["ae.regulariser.beta must be between"],
    f"{KL} ae.loss.disc_weight=-1": ["ae.loss.disc_weight must be between"],
    f"{KL} ae.loss.perceptual_weight=inf": ["ae.loss.perceptual_weight must be"],
    "objective/schedule=karras objective.schedule.rho=nan": ["objective.schedule.rho must be"],
    "objective/schedule=karras objective.schedule.sigma_max=inf": ["objective.schedule.sigma_max must be"],
    "objective/times=log_normal objective.times.mean=inf": ["objective.times.mean must be"],
    "sampler=heun sampler.s_churn=inf": ["sampler.s_churn must be"],
    "sampler=heun sampler.s_tmin=nan": ["sampler.s_tmin must be"],
    "sampler=heun sampler.s_tmin=inf": ["sampler.s_tmin must be"],
    "objective/times=log_normal objective.times.std=nan": ["objective.times.std must be"],
    "ae=vq_f8 ae.regulariser.weight=nan": ["ae.regulariser.weight must be"],
    f"{KL} ae.loss.disc_weight=nan": ["ae.loss.disc_weight must be"],
    "guidance=auto guidance.auto.scale=inf": ["guidance.auto.scale must be"],
    "guidance=image guidance.image.scale=nan": ["guidance.image.scale must be"],
    "ldm.budget.flops_per_step=inf": ["ldm.budget.flops_per_step must be"],
    "ldm.budget.flops_per_image=nan": ["ldm.budget.flops_per_image must be"],
    "guidance=classifier guidance.classifier.scale=nan": ["guidance.classifier.scale must be"],
    "ldm.budget.parameters=inf": ["ldm.budget.parameters must be"],
    "eval.bootstrap=1": ["eval.bootstrap must be between 2"],
    "eval.samples=1": ["eval.samples must be between 2"],
    "eval.reconstructions=1": ["eval.reconstructions must be between 2"],
    "eval.reference.images=1": ["eval.reference.images must be between 2"],
    "data.val_images=1": ["data.val_images must be between 2"],
    "eval.extractor.width=0": ["eval.extractor.width must be between 1"],
    "eval.extractor.learns=[label,label]": ["eval.extractor.learns", "names nothing twice"],
    "eval.extractor.trained_on=photos": ["eval.extractor.trained_on must be one of shapes, data"],
    "eval.at=[]": ["eval.at must be a list of at least 1"],
    "runtime.workers=-1": ["runtime.workers must be between 0"],
    "seed=-1": ["seed must be between 0"],
    # what would hang, or ask for all memory
    "data.resolution=1000000": ["data.resolution must be between 16 and 4096"],
    "ae.network.width=100000": ["ae.network.width must be between 1 and 16384"],
    "ldm.network.width=100000": ["ldm.network.width must be between 1 and 16384"],
    "ae.network.blocks=1000000000000000": ["ae.network.blocks must be between 1 and 1000"],
    f"{KL} ae.loss.discriminator.layers=1000000000000000": ["ae.loss.discriminator.layers must be between 1 and 12"],
    "objective.schedule.T=100000000": ["objective.schedule.T must be between 1 and 1e+06"],
    "ae.loss.norm_images=0": ["ae.loss.norm_images must be between 1"],
    f"data=folder data.root={'a' * 5_000}": ["data.root must be a path", "(5,002 characters)"],
    "store=": ["store must be a path that is not empty"],
    # rules between options
    f"{SCALE} ae.latent_scale.shift=[1]": ["ae.latent_scale.shift=[1]", "a list of 4", "it has 1"],
    "guidance=[classifier,classifier]": ["guidance=[classifier,classifier] names one option twice"],
    "data.fields=[label,label]": ["data.fields must be a list that names nothing twice"],
    "eval.metrics=[fid,kidd]": ["eval.metrics: no metric is called 'kidd'", "Did you mean 'kid'", "precision"],
    "eval.metrics=[fid] metric.kid.subsets=5": ["metric.kid.subsets", "eval.metrics=[fid]", "Add it there"],
    "metric.kid.subsetts=5": ["metric.kid.subsetts: no such option", "Did you mean 'subsets'"],
    "metric.kid.subsets=0": ["metric.kid.subsets must be"],
    # null, interpolation, deletion, parts as words
    "ldm=null": ["ldm=null: a group takes the name of one of its options", "unet_base", "leave it out"],
    "ae=null": ["ae=null: a group takes", "kl_f8"],
    "data=null": ["data=null: a group takes", "shapes"],
    "sampler=null": ["sampler=null: a group takes", "ddim"],
    "debug=3": ["debug=3: no such option", "tiny"],
    "ae.fit=null": ["ae.fit.batch_size is not set", "ae.decoder_fit.batch_size"],
    "ae=_conv": ["ae=_conv: no such option", "kl_f8"],
    "seed=${nope}": ["seed=${nope} cannot be resolved", "Write the value itself"],
    "seed=${oc.env:HOME}": ["seed=${oc.env:HOME} cannot be resolved"],
    "seed=${seed}": ["seed=${seed} cannot be resolved"],
    "ae.network=null": ["ae.network must be a part with a _target_", "null"],
    "ldm.network=unet": ["ldm.network must be a part with a _target_", "'unet'"],
    f"{KL} ae.loss.perceptual=zzz": ["ae.loss.perceptual must be a part with a _target_", "'zzz'"],
    "ldm.network._target_=3": ["ldm.network._target_ must be the dotted name", "3"],
    "~seed": ["~seed: an option cannot be taken away", "seed=…"],
    "~ae.network.c": ["~ae.network.c: an option cannot be taken away"],
    "~eval.samples": ["~eval.samples: an option cannot be taken away", "eval.samples=…"],
    "bench.family.deeper=1": ["bench.family.deeper: bench.family has no options of its own"],
    "store=null": ["store must be text; got null"],
    "ae.weights=[1]": ["ae.weights must be text or null; got [1]"],
    # how a word is written
    "ae.fit.snapshots=[0.1": ["ae.fit.snapshots=[0.1", "a list that begins with [ must end with ]"],
    "cond.label='": ["cond.label='", "a quoted value that begins with ' must end with '"],
    "ae=kl_f8,kl_f4": ["ae=kl_f8,kl_f4 names several values", "-m ae=kl_f8,kl_f4"],
    "eval.at=0.5": ["eval.at must be a list", "got 0.5", "Write eval.at=[0.5]"],
    "ldm.fit.betas=0.9": ["ldm.fit.betas must be two numbers in [0, 1); got 0.9"],
    "eval.metrics=fid": ["eval.metrics must be a list", "Write eval.metrics=[fid]"],
    "guidance/transform=mask": ["guidance/transform=mask: the chosen guidance has no transform", "guidance=image"],
    # without effect
    "hydra.run.dir=/x": ["hydra.run.dir=/x has no effect here", "store="],
    "hydra/launcher=basic": ["hydra/launcher=basic has no effect here", "-m"],
    "seed=1 seed=2": ["seed is given twice: seed=1 and seed=2", "Leave one of them out"],
}  # fmt: skip


@pytest.mark.parametrize("words", WRONG, ids=lambda words: words[:70])
def test_it_is_refused_in_one_line(words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(words.split(" "))
    said = str(caught.value)
    for part in WRONG[words]:
        assert part in said, said
    assert "\n" not in said and len(said) < 1_200


@pytest.mark.parametrize("words", [[""], ["seed =1"], ["=1"], ["nonsense"], ["a b=1"]], ids=repr)
def test_words_that_are_no_options(words: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"[Ww]rite|path=value"):
        load(words)


@pytest.mark.parametrize(
    "path",
    ["/data/fotos_é", "/data/my pictures (2)/a=b", "it's", "C:\\temp", "/a/'b'", "/a {b}", "/x/100%", "/a#b", "/data/图片", "-m"],
)  # fmt: skip
def test_ordinary_paths_are_taken_as_they_are(path: str) -> None:
    assert load(["data=folder", f"data.root={path}"]).cfg.data.root == path


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert load(["data=folder", "data.root=~/pictures (1)"]).cfg.data.root == "/home/me/pictures (1)"


@pytest.mark.parametrize("name", [name for name in group_options("experiment") if name.startswith(("task_", "large_"))])
def test_pictures_of_an_experiment_need_no_extractor(name: str) -> None:
    assert load([f"experiment={name}", "eval=none", "until=samples"]).cfg.eval.extractor is None


@pytest.mark.parametrize("ae", ["identity", "vq_f4", "kl_f32"])
def test_an_experiment_fits_every_first_stage(ae: str) -> None:
    cfg = load(["experiment=demo", f"ae={ae}"]).cfg
    assert (cfg.ae.fit is None) if ae == "identity" else (cfg.ae.fit.images == 20_000)


def test_a_preset_leaves_the_smaller_values_of_a_recipe_alone() -> None:
    photos = ["experiment=photos64", "data.root=here", "eval.extractor.weights=file.pth"]
    assert load([*photos, "ae=vq_f4_n256"]).cfg.ae.regulariser.codes == 256
    assert load([*photos, "ae=vq_f4"]).cfg.ae.regulariser.codes == 1024


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("ae", ["kl_f4", "vq_f8"])
def test_the_small_preset_divides_among_processes(ae: str, processes: int) -> None:
    from ldmlab.pipeline.fitting import check_batches

    words = ["debug=tiny", f"ae={ae}", f"runtime.processes={processes}"]
    cfg = load(words).cfg
    assert cfg.ae.loss.discriminator is not None
    check_batches(cfg)
    check_batches(load([*words, "ae.train=decoder"]).cfg)
