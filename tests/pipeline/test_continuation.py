"""A longer training goes on where a finished one ended, and nobody can tell: every file is that of one made at once."""

import json
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from option_words import replacing
from ranks import killed

from ldmlab.config.compose import load
from ldmlab.errors import ConfigError
from ldmlab.pipeline.context import Context
from ldmlab.pipeline.cooldown import CooldownStage
from ldmlab.pipeline.denoiser import DenoiserStage
from ldmlab.pipeline.first_stage import FirstStage
from ldmlab.pipeline.launch import make_accelerator
from ldmlab.pipeline.plan import Plan, begun, table
from ldmlab.pipeline.run import prepare
from ldmlab.pipeline.stage import Stage
from ldmlab.store.checkpoint import Checkpoints
from ldmlab.training import kept

BASE = [
    "debug=tiny", "ae=identity", "cond=none", "eval=none", "data.resolution=16", "data.train_images=40", "data.val_images=8",
    "data.cached=false", "until=denoiser", "runtime.threads=1", "runtime.log_seconds=1e-9",
]  # fmt: skip
DENOISER = [
    *BASE, "ldm.fit.images=24", "ldm.fit.batch_size=4", "ldm.fit.warmup=16", "ldm.fit.snapshots=[12]", "ldm.power_ema=[0.1]",
    "ldm.network.dropout=0.1", "ldm.network.multipliers=[1]", "ldm.network.attention_factors=[1]",
]  # fmt: skip
FIRST = [
    "ae.fit.images=16", "ae.fit.batch_size=4", "ae.fit.ema=0.9", "ae.network.multipliers=[1,1]",
    "ae/loss/discriminator=patchgan_2", "ae.loss.disc_start=4",
]  # fmt: skip


def plan_of(root: Path, *words: str, base: list[str] = DENOISER) -> Plan:
    return prepare(load(replacing([*base, f"store={root}"], words)))


def made(root: Path, *words: str, kind: type[Stage] = DenoiserStage, base: list[str] = DENOISER) -> Path:
    plan = plan_of(root, *words, base=base)
    return kind.of(plan)[-1].make(Context(plan.resolved.cfg, plan, make_accelerator("cpu")))


def result(folder: Path) -> dict[str, bytes]:
    """Every weight, average and optimiser's state, by its path."""
    found = [p for p in folder.rglob("*") if p.suffix in (".safetensors", ".pt") and "checkpoints" not in p.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def losses(folder: Path) -> list[tuple[int, float]]:
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(row["images"], row["loss"]) for row in rows if row["split"] == "train"]


@pytest.fixture(scope="module")
def at_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("at once"))


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a finished denoiser of 12 images, and no snapshot."""
    root = tmp_path_factory.mktemp("short")
    made(root, "ldm.fit.images=12", "ldm.fit.snapshots=[]")
    return root


def copied(root: Path, to: Path) -> Path:
    subprocess.run(["cp", "-a", str(root), str(to)], check=True)
    return to


def test_a_denoiser_continued_is_the_one_made_at_once(short: Path, at_once: Path, tmp_path: Path) -> None:
    """With dropout, warm-up, two kinds of averages; the shorter one's end is the longer one's snapshot."""
    root = copied(short, tmp_path / "store")
    (shorter,) = root.glob("denoiser/*")
    before = result(shorter)
    plan = plan_of(root)
    state = next(line[2] for line in table(plan, costs=False) if line[0] == "denoiser")
    assert state == f"continues {shorter.name[-12:]} from 12 images"
    assert next(row.what for stage, row in plan.rows if stage.name == "denoiser").endswith("24 img · 2 restart points")
    folder = made(root)
    assert folder.name == at_once.name and result(folder) == result(at_once)
    assert {"optimizers.pt", "power_0.1.safetensors", "snapshots/000000000012/optimizers.pt"} <= set(result(folder))
    assert losses(folder) == losses(at_once) and [n for n, _ in losses(folder)] == [4, 8, 12, 16, 20, 24]
    assert json.loads((folder / "continued.json").read_text()) == {"id": shorter.name[-12:], "images": 12}
    assert result(shorter) == before and not (folder / "checkpoints").exists()


def test_a_shorter_one_is_cut_out_of_a_longer_one(at_once: Path, short: Path, tmp_path: Path) -> None:
    root = copied(at_once.parents[1], tmp_path / "store")
    words = ["ldm.fit.images=12", "ldm.fit.snapshots=[]"]
    assert plan_of(root, *words).stage(DenoiserStage).continuation.start.images == 12  # type: ignore[union-attr]
    (alone,) = short.glob("denoiser/*")
    assert result(made(root, *words)) == result(alone)


def test_a_rate_that_a_search_found_is_a_rate_that_was_given(tmp_path: Path) -> None:
    """A tuned training is continued by one with its rate typed, and by a tuned one once its own search has found the same."""
    one = [
        "tune=lr",
        "tune.factors=[1.0,1e-9]",
        "tune.share=0.5",
    ]  # the second learns nothing: every search finds the first
    (shorter,) = {made(tmp_path, *one, "ldm.fit.images=12", "ldm.fit.snapshots=[]")}
    typed = plan_of(tmp_path).stage(DenoiserStage).continuation
    assert (
        typed is not None and typed.start is not None and typed.start.origin == {"id": shorter.name[-12:], "images": 12}
    )
    assert plan_of(tmp_path, "ldm.fit.lr=0.01").stage(DenoiserStage).continuation.start is None  # type: ignore[union-attr]
    searching = plan_of(tmp_path, *one).stage(DenoiserStage).continuation
    assert searching is not None and searching.start is None  # nobody knows yet
    again = made(tmp_path, *one)
    assert json.loads((again / "continued.json").read_text()) == {"id": shorter.name[-12:], "images": 12}
    assert result(again) == result(made(tmp_path)) and again != made(tmp_path)


@pytest.mark.parametrize("ae", ["ae=kl_f4", "ae=vq_f4", "ae=kl_f4 ae.fit.optimizer=muon"])
def test_a_first_stage_continued_is_the_one_made_at_once(ae: str, tmp_path: Path) -> None:
    """The discriminator, which begins after 4 images, and its optimiser go on too."""
    base = [*replacing(BASE, [*ae.split(), "until=autoencoder"]), *FIRST]
    for words in (["ae.fit.images=8"], []):
        continued = made(tmp_path / "a", *words, kind=FirstStage, base=base)
    plan = plan_of(tmp_path / "a", base=base)
    assert [s.name for s in plan.order if s.trains] == ["autoencoder"] and (continued / "continued.json").is_file()
    fresh = made(tmp_path / "b", kind=FirstStage, base=base)
    assert continued.name == fresh.name and result(continued) == result(fresh)
    assert {"autoencoder.safetensors", "discriminator.safetensors", "optimizers.pt"} <= set(result(fresh))
    assert not (fresh / "continued.json").exists()
    states = torch.load(fresh / "optimizers.pt", weights_only=True)
    for player in ("autoencoder", "discriminator"):
        assert ("momentum" in states[player]["state"][0]) == ("muon" in ae)


def test_a_run_of_its_own_goes_on_from_where_a_cool_down_began(short: Path, at_once: Path, tmp_path: Path) -> None:
    """It was cooled down over its last 8 of 20 images: the state at 12 is kept, and nothing behind it is used."""
    cooled = ["ldm.fit.images=20", "ldm.fit.cooldown=8", "ldm.fit.snapshots=[16]"]
    folder = made(tmp_path, *cooled)
    assert {name for name in result(folder) if name.endswith(".pt")} == {"snapshots/000000000012/optimizers.pt"}
    assert plan_of(tmp_path).stage(DenoiserStage).continuation.start.images == 12  # type: ignore[union-attr]
    assert result(made(tmp_path)) == result(at_once)
    # and the other way: its cool-down begins at the end of the shorter one
    again = copied(short, tmp_path / "again")
    assert plan_of(again, *cooled).stage(DenoiserStage).continuation.start.images == 12  # type: ignore[union-attr]
    assert result(made(again, *cooled)) == result(folder)


def test_a_snapshot_cooled_down_is_a_training_with_that_cool_down(short: Path, at_once: Path, tmp_path: Path) -> None:
    """Beside the training, which goes on as if nothing had been: `eval.cooldown`."""
    root = copied(short, tmp_path / "store")
    (trunk,) = root.glob("denoiser/*")
    before = {path: path.read_bytes() for path in trunk.rglob("*") if path.is_file()}
    words = ["ldm.fit.images=12", "ldm.fit.snapshots=[]", "eval.cooldown=0.5"]
    branch = made(root, *words, kind=CooldownStage)
    whole = made(
        tmp_path / "whole", "ldm.fit.images=20", "ldm.fit.cooldown=8", "ldm.fit.snapshots=[]"
    )  # 0.5 · 12, in whole steps
    same = ("weights.safetensors", "ema.safetensors")
    assert [result(branch)[name] for name in same] == [result(whole)[name] for name in same]
    assert sorted(result(branch)) == sorted(same) and [n for n, _ in losses(branch)] == [16, 20]
    assert {path: path.read_bytes() for path in trunk.rglob("*") if path.is_file()} == before
    assert result(made(root)) == result(at_once)
    longer = plan_of(root, "eval.cooldown=0.5", "eval.at=[12,1.0]", "until=samples")  # the first is there already
    states = {line[3]: line[2] for line in table(longer, costs=False) if line[0] == "cooldown"}
    assert states == {"from 12 img over 8": "done", "from 24 img over 12": "will run"}
    assert [row.what.rpartition("after ")[2] for stage, row in longer.rows if stage.name == "samples"] == [
        "20 img",
        "36 img",
    ]


@pytest.mark.parametrize(
    "words,why",
    [
        ("ldm.fit.lr=0.5e-3", ""),
        ("ldm.fit.batch_size=2", ""),
        ("ldm.seed=1", ""),
        ("ldm.fit.cooldown=16", "no optimiser's state within the first 8 images"),
        ("ldm.fit.snapshots=[8]", "no snapshot at 8 images, which fit.snapshots asks for"),
        ("ldm.power_ema=[0.1,0.2]", r"no average of ldm.power_ema=[0.2]"),
    ],
)
def test_what_may_not_be_continued_begins_at_zero(words: str, why: str, short: Path) -> None:
    plan = plan_of(short, words)
    assert next(line[2] for line in table(plan, costs=False) if line[0] == "denoiser") == "will run"
    said = [note for note in plan.notes if "not continued" in note]
    assert len(said) == bool(why) and all(why in note for note in said)


def test_what_was_altered_or_kept_no_state_is_not_continued(short: Path, tmp_path: Path) -> None:
    root = copied(short, tmp_path / "store")
    (state,) = root.glob("denoiser/*/optimizers.pt")
    state.write_bytes(state.read_bytes()[:-1] + b"\x55")
    for verify in ("true", "false"):
        plan = plan_of(root, f"verify={verify}")
        assert not plan.stage(DenoiserStage).continuation.start and "it was altered" in plan.notes[-1]  # type: ignore[union-attr]
    words = ["ldm.fit.keep_state=false", "ldm.fit.snapshots=[12]"]
    less = made(tmp_path / "less", "ldm.fit.images=12", *words)
    assert not [name for name in result(less) if name.endswith(".pt")]
    assert "no optimiser's state" in plan_of(tmp_path / "less").notes[-1]
    with pytest.raises(
        ConfigError, match=r"after 12 images, and .*was trained without keeping it.*ldm\.fit\.keep_state=true"
    ):
        plan_of(tmp_path / "less", "ldm.fit.images=12", *words, "eval.cooldown=8")
    with pytest.raises(ConfigError, match=r"ldm\.fit\.keep_state=false keeps none"):
        plan_of(tmp_path / "new", *words, "eval.cooldown=8")


def test_killed_before_its_first_checkpoint(
    short: Path, at_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Snapshots and log are taken over first, the checkpoint last: without it the next attempt takes them over again."""
    root = copied(short, tmp_path / "store")
    with monkeypatch.context() as patch:
        patch.setattr(kept.Checkpoints, "save", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            made(root)
    plan = plan_of(root)
    assert not begun(plan.stage(DenoiserStage)) and list(root.glob("denoiser/*/continued.json"))
    assert result(made(root)) == result(at_once)


@pytest.mark.slow
def test_kill_9_on_the_way(short: Path, at_once: Path, tmp_path: Path) -> None:
    root = copied(short, tmp_path / "store")
    words = [*DENOISER, f"store={root}", "runtime.checkpoint_seconds=1e-9"]
    seen = lambda: list(root.glob("denoiser/*/checkpoints/000000000016"))  # noqa: E731
    assert killed(seen, 0.0, signal.SIGKILL, tmp_path / "log", words) == -signal.SIGKILL
    (folder,) = root.glob("denoiser/*/checkpoints")
    assert int(Checkpoints(folder.parent).generations()[-1].name) >= 16
    assert result(made(root)) == result(at_once)
