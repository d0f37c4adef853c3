"""What goes into a cluster's queue, without a cluster: groups of shared stages, ranks, words. With one: tests/cluster."""

import json
from pathlib import Path
from typing import Any

import pytest

from ldmlab.cli import command
from ldmlab.errors import ConfigError
from ldmlab.sweeping.board import State
from ldmlab.sweeping.forecast import CellForecast, StageForecast
from ldmlab.sweeping.queue import InQueue, Queue, Submitted, waits_of
from ldmlab.sweeping.shared import Shared, shared
from ldmlab.sweeping.slurm import cancel, ranks_per_node, status
from ldmlab.sweeping.slurm_job import PORTS, ranks


def cell(store: Path, number: int, *names: str) -> CellForecast:
    """A cell of stages that stand on those before them."""
    folders = [store / name.split("-")[0] / name for name in names]
    stages = [
        StageForecast(f.parent.name, f, "will run", 1.0, 1.0, frozenset(folders[:n])) for n, f in enumerate(folders)
    ]
    return CellForecast([f"n={number}"], f"n={number}", tuple(stages), store / "runs" / f"run-{number}")


def test_stages_that_the_same_cells_need_are_one_job_behind_those_they_stand_on(tmp_path: Path) -> None:
    cells = [
        cell(tmp_path, 0, "extractor-e", "autoencoder-a", "latents-a", "denoiser-1", "samples-1"),
        cell(tmp_path, 1, "extractor-e", "autoencoder-a", "latents-a", "denoiser-2", "samples-2"),
        cell(tmp_path, 2, "extractor-e", "autoencoder-b", "latents-b", "denoiser-3", "samples-3"),
        cell(tmp_path, 3, "extractor-e", "autoencoder-b", "latents-b", "denoiser-3", "samples-4"),
    ]
    found = shared(cells)
    folders = [sorted(folder.name for folder in group.folders) for group in found]
    assert folders == [["extractor-e"], ["autoencoder-a", "latents-a"], ["autoencoder-b", "denoiser-3", "latents-b"]]
    assert [(group.cells, group.on) for group in found] == [((0, 1, 2, 3), ()), ((0, 1), (0,)), ((2, 3), (0,))]
    done = tmp_path / "extractor/extractor-e"
    done.mkdir(parents=True)
    (done / "done.json").touch()
    assert [group.on for group in shared(cells)] == [(), ()]


def test_a_stage_that_stands_on_no_shared_one_waits_for_none(tmp_path: Path) -> None:
    cells = [cell(tmp_path, n, "autoencoder-a", f"denoiser-{n}") for n in range(3)]
    apart = StageForecast("reference", tmp_path / "reference-r", "will run", 1.0, 1.0)
    cells = [CellForecast(c.words, c.label, (*c.stages, *([apart] if n else [])), c.run) for n, c in enumerate(cells)]
    assert shared(cells) == [
        Shared((tmp_path / "autoencoder/autoencoder-a",), (0, 1, 2), ()),
        Shared((tmp_path / "reference-r",), (1, 2), ()),
    ]
    assert shared(cells[:1]) == []


TASK = {
    "SLURM_NTASKS": "16", "SLURM_PROCID": "9", "SLURM_LOCALID": "1", "SLURM_JOB_NUM_NODES": "2", "SLURM_NODEID": "1",
    "SLURM_JOB_ID": "123456", "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1",
}  # fmt: skip


def test_a_task_of_a_job_is_a_rank() -> None:
    found = ranks(TASK)
    assert (found["RANK"], found["WORLD_SIZE"], found["LOCAL_RANK"], found["LOCAL_WORLD_SIZE"]) == ("9", "16", "1", "8")
    assert found["MASTER_ADDR"] == "10.0.0.1" and int(found["MASTER_PORT"]) in PORTS
    assert ranks(TASK | {"SLURM_JOB_ID": "123457"})["MASTER_PORT"] != found["MASTER_PORT"]
    assert ranks(TASK | {"SLURM_NTASKS": "1"}) == {}


@pytest.mark.parametrize(
    ("asked", "processes", "count"),
    [({}, 1, 1), ({"gpus_per_node": 8}, 1, 8), ({}, 4, 4), ({"gpus_per_node": 8, "tasks_per_node": 2}, 1, 2)],
)
def test_a_node_gets_a_rank_a_gpu(asked: dict[str, Any], processes: int, count: int) -> None:
    params = {"gpus_per_node": None, "tasks_per_node": 1, "gpus_per_task": None} | asked
    assert ranks_per_node(params, processes) == count
    with pytest.raises(ConfigError, match=r"gpus_per_task hides .* Use hydra\.launcher\.gpus_per_node"):
        ranks_per_node(params | {"gpus_per_task": 1}, processes)


def test_a_cell_s_state_is_what_store_scheduler_and_job_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue, one = Queue(tmp_path), cell(tmp_path, 7, "autoencoder-a", "denoiser-7")
    assert queue.state(one) == State("autoencoder", "will run")
    queue.write(one, Submitted("12_0", ["11"], "sweeps/job-7.log", "queue/cell-7.end"))
    queue.write(one.stages[0], Submitted("11", [], "sweeps/shared-a.log", "queue/stage-a.end"))
    assert queue.state(one) == State("", "ended without a word")
    queue.now = {"11": InQueue("RUNNING", "n1", "None"), "12_0": InQueue("PENDING", "", "Dependency")}
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps/shared-a.log").write_text(" autoencoder   25%  16/64 img · 31 img/s · 0:02 left\n")
    assert queue.state(one) == State("autoencoder", "waits for the shared autoencoder, 25%")
    queue.now = {"12_0": InQueue("RUNNING", "n2", "None")}
    (tmp_path / "sweeps/job-7.log").write_text(" denoiser      50%  16/32 img · 31 img/s · 0:12 left\n")
    assert queue.state(one) == State("denoiser", "running on n2 50%", 12.0)
    queue.now = {}
    (tmp_path / "queue/stage-a.end").write_text(json.dumps({"exit_code": 1}))
    assert queue.state(one) == State("autoencoder", "failed with exit code 1")
    for code, said in ((85, "stopped"), (137, "failed with exit code 137")):
        (tmp_path / "queue/cell-7.end").write_text(json.dumps({"exit_code": code}))
        assert queue.state(one) == State("", said)
    assert "0 of 1 cells done" in status([cell(tmp_path / "other", 7, "denoiser-7")], Queue(tmp_path / "other"))


def test_cancelling_leaves_shared_jobs_that_others_wait_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [cell(tmp_path, n, "autoencoder-a", f"denoiser-{n}") for n in range(2)]
    queue, asked = Queue(tmp_path), list[tuple[str, ...]]()
    for number, each in enumerate(cells):
        queue.write(each, Submitted(f"12_{number}", ["11"], "", ""))
        queue.write(each.stages[0], Submitted("11", [], "", ""))
    held = {job: InQueue("PENDING", "", "") for job in ("11", "12_0", "12_1")}
    monkeypatch.setattr("ldmlab.sweeping.queue.squeue", lambda: held)
    monkeypatch.setattr("ldmlab.sweeping.slurm.said", lambda *words: asked.append(words))
    assert cancel(cells[:1], queue) == " 1 jobs cancelled: 12_0"
    held.pop("12_0")
    assert cancel(cells[1:], queue) == " 2 jobs cancelled: 11 12_1"
    assert asked == [("scancel", "12_0"), ("scancel", "11", "12_1")] and not list(queue.folder.glob("*.json"))


def test_a_job_behind_none_waits_for_none() -> None:
    assert waits_of([]) == {} and waits_of(["11", "12"])["dependency"] == "afterok:11:12"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["submit=true"],
            "submit=true puts jobs into a cluster's queue and returns; it needs hydra/launcher=submitit_slurm",
        ),
        (
            ["hydra/launcher=submitit_slurm"],
            "sbatch is not on this machine. Type the command on one of the cluster's own.",
        ),
        (
            ["hydra/launcher=submitit_slurm", "sweeps=samplers"],
            "sweeps=samplers is a sweep of several runs and needs -m",
        ),
        (["hydra/launcher=submitit_slurm", "seeds.denoiser=2"], "A sweep needs -m"),
        (["hydra.launcher.nodes=2"], "hydra.launcher.nodes=2 has no effect here"),
    ],
)
def test_what_cannot_be_queued_is_said_in_one_line(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from train import train

    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("LDMLAB_SWEEP_CHILD", raising=False)
    monkeypatch.setattr("sys.argv", ["src/train.py", *words])
    with pytest.raises(SystemExit) as ended:
        command(train, ranks=True)
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and error.count("\n") == 1


def test_a_shared_job_makes_its_stages_and_what_they_stand_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ldmlab.config.compose import SWEEP_CHILD, load
    from ldmlab.errors import UserError
    from ldmlab.pipeline.run import named_stages, prepare
    from ldmlab.sweeping.forecast import forecast

    monkeypatch.setenv(SWEEP_CHILD, "1")
    words = ["debug=tiny", "ae=pca_f4", "eval=none", "until=samples", "data.resolution=32", f"store={tmp_path}"]
    one, two = forecast([[*words, f"ldm.seed={seed}"] for seed in (0, 1)], elsewhere=True)
    (group,) = shared([one, two])
    assert [folder.parent.name for folder in group.folders] == ["autoencoder", "reconstructions", "latents"]
    plan = prepare(load([*words, "ldm.seed=0", "runtime.device=cpu"]))
    assert {stage.id for stage in one.stages} <= {stage.address.id for stage in plan.order}
    latents = next(stage for stage in one.stages if stage.name == "latents")
    assert [stage.name for stage in named_stages(plan, [latents.id])][-2:] == ["autoencoder", "latents"]
    with pytest.raises(UserError, match="names c0ffee, which is no stage of this run"):
        named_stages(plan, ["c0ffee"])
