"""A sweep's seeds, its processes and its board; whole sweeps killed and re-issued are in tests/commands."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from ldmlab.config.compose import SWEEP_CHILD, load, swept
from ldmlab.errors import ConfigError
from ldmlab.pipeline.launch import PARENT
from ldmlab.sweeping.board import Board
from ldmlab.sweeping.cells import labels, with_seeds
from ldmlab.sweeping.forecast import CellForecast, StageForecast, summary
from ldmlab.sweeping.processes import Slots, Sweep, slots
from ldmlab.sweeping.study import _end, _record
from ldmlab.terminal import Progress, read_progress


@pytest.fixture(autouse=True)
def a_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWEEP_CHILD, "1")


# ---- seeds ----------------------------------------------------------------------------------------------------------


def test_seeds_nest_and_a_first_stage_in_closed_form_has_none() -> None:
    seeds = ["seeds.first_stage=2", "seeds.denoiser=2", "seeds.sampling=2"]
    jobs = with_seeds([[f"ae={ae}", *seeds] for ae in ("kl_f4_quick", "pca_f4")])
    found = [{k: v for k, _, v in (word.partition("=") for word in job)} for job in jobs]
    kl, pca = ([job for job in found if job["ae"] == ae] for ae in ("kl_f4_quick", "pca_f4"))
    assert [(j["ae.seed"], j["ldm.seed"], j["eval.seed"]) for j in kl] == [
        (a, d, s) for a in "01" for d in "01" for s in "01"
    ]
    assert len(pca) == 4 and all("ae.seed" not in job for job in pca)


def test_seeds_begin_at_the_configuration_s_own_and_growing_keeps_what_is_there() -> None:
    two, three = (with_seeds([["seed=5", f"seeds.denoiser={n}"]]) for n in (2, 3))
    ids = [[load(job).cfg.ldm.seed for job in jobs] for jobs in (two, three)]
    assert ids == [[5, 6], [5, 6, 7]]
    assert with_seeds([["seed=5"]]) == [["seed=5"]]  # one seed: the words, and so the ids, are what they were


def test_several_seeds_are_no_single_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SWEEP_CHILD)
    with pytest.raises(ConfigError, match=r"seeds\.denoiser=2 makes several cells.*needs -m.*ldm\.seed"):
        load(["seeds.denoiser=2"])
    with pytest.raises(ConfigError, match="parallel must be auto, or a whole number between 1 and 4096; got 0"):
        load(["parallel=0"])


def test_an_experiment_has_its_own_list_for_a_study() -> None:
    assert swept(["sweeps=compression"])["ae"].startswith("identity,kl_f2_quick")
    small = swept(["sweeps=compression", "experiment=compression_small"])
    assert set(small) == {"ae"} and "kl_f16_quick" in small["ae"]
    assert "sampler.guidance" in swept(
        ["sweeps=guidance", "experiment=compression_small"]
    )  # another study's is its own
    assert swept(["experiment=compression_small", "ae=kl_f4_quick"]) == {}  # a sweep over typed values is no study


# ---- processes ------------------------------------------------------------------------------------------------------


def stage(folder: Path, name: str, seconds: float = 1.0, state: str = "will run") -> StageForecast:
    return StageForecast(name, folder / name, state, seconds, 10.0)


def sweep_of(folder: Path, codes: list[str], shared: list[list[str]], width: int = 2, say: str = "") -> Sweep:
    cells = [
        CellForecast([f"n={n}"], f"n={n}", tuple(stage(folder, name) for name in names))
        for n, names in enumerate(shared)
    ]
    commands = [[sys.executable, "-S", "-c", code] for code in codes]
    logs = [folder / f"job-{n}.log" for n in range(len(codes))]
    return Sweep(
        cells, commands, logs, Slots(width), Board([c.label for c in cells]), lambda s: _record(s, folder, "some")
    )


def test_a_killed_cell_leaves_the_others_running(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    sweep = sweep_of(tmp_path, ["print('one')", kill, "raise SystemExit(1)", "pass"], [["a"], ["b"], ["c"], ["d"]])
    sweep.run()
    assert sweep.exits == {0: 0, 1: -9, 2: 1, 3: 0} and _end(sweep, "some") == 1
    jobs = json.loads((tmp_path / "jobs.json").read_text())["jobs"]
    assert [job["exit_code"] for job in jobs] == [0, -9, 1, 0] and (tmp_path / "job-0.log").read_text() == "one\n"
    said = capsys.readouterr()
    assert "2 of 4 jobs failed. The same command runs what is missing." in said.err and "n=1 exited with -9" in said.err
    assert "cell 1 n=1 failed with exit code -9" in said.out and "report  python src/report.py study=some" in said.out


def test_cells_run_at_once_and_what_shares_a_stage_waits(tmp_path: Path) -> None:
    """Two at once; the cell that shares its training with a running one comes after the one that does not."""
    code = f"import time, sys, os; open({str(tmp_path)!r} + '/order', 'a').write(sys.argv[1]); time.sleep(0.5)"
    sweep = sweep_of(tmp_path, [code] * 3, [["long"], ["long"], ["other"]])
    sweep.commands = [[*command, str(n)] for n, command in enumerate(sweep.commands)]
    began = time.monotonic()
    sweep.run()
    assert sorted((tmp_path / "order").read_text()[:2]) == ["0", "2"] and time.monotonic() - began < 10
    assert sweep.exits == {0: 0, 1: 0, 2: 0}


def test_a_signal_stops_the_running_cells_and_starts_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *a: sys.exit(85)); print(1, flush=True); time.sleep(60)"
    sweep = sweep_of(tmp_path, [code, "pass"], [["a"], ["b"]], width=1)

    def when_it_runs() -> None:
        while not (tmp_path / "job-0.log").exists() or not (tmp_path / "job-0.log").read_text():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=when_it_runs).start()
    sweep.run()
    assert sweep.exits == {0: 85} and _end(sweep, None) == 85 and "the same command goes on" in capsys.readouterr().err
    assert [job["exit_code"] for job in json.loads((tmp_path / "jobs.json").read_text())["jobs"]] == [85, None]


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells a process that its parent died")
def test_a_cell_ends_with_its_sweep(tmp_path: Path) -> None:
    """kill -9 of the sweep: its cells get a SIGTERM, so that a training writes its checkpoint."""
    cell = (
        "import signal, sys, time; from ldmlab.pipeline.launch import end_with_parent; "
        f"signal.signal(signal.SIGTERM, lambda *a: (open({str(tmp_path / 'told')!r}, 'w').close(), sys.exit(0))); "
        f"end_with_parent(); open({str(tmp_path / 'runs')!r}, 'w').close(); time.sleep(60)"
    )
    parent = (
        "import os, subprocess, sys, time; "
        f"subprocess.Popen([sys.executable, '-c', {cell!r}], env={{**os.environ, {PARENT!r}: str(os.getpid())}}); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", parent])
    wait_for(tmp_path / "runs")
    process.kill()
    wait_for(tmp_path / "told")


def wait_for(file: Path, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not file.exists():
        assert time.monotonic() < end, f"{file} did not come"
        time.sleep(0.02)


def test_slots_give_a_cell_a_core_or_what_runtime_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    runtime = SimpleNamespace(device="cpu", processes=1, threads=None)
    assert slots("auto", runtime).count == 8 and slots(3, runtime).count == 3
    assert slots("auto", SimpleNamespace(device="cpu", processes=2, threads=2)).count == 2
    assert slots("auto", runtime).environment(0)["OMP_NUM_THREADS"] == "1"
    assert "OMP_NUM_THREADS" not in slots(1, runtime).environment(0)
    gpus = Slots(4, gpus=2)
    assert [gpus.environment(n)["CUDA_VISIBLE_DEVICES"] for n in range(4)] == ["0", "1", "0", "1"]


@pytest.mark.parametrize(
    ("visible", "processes", "dealt"),
    [
        (None, 1, ["0", "1", "2", "3"]),
        ("4,5,6,7", 1, ["4", "5", "6", "7"]),  # half a machine, in a job that has the other half hidden
        ("GPU-a,GPU-b,GPU-c,GPU-d", 2, ["GPU-a,GPU-b", "GPU-c,GPU-d"]),
    ],
)
def test_each_cell_has_gpus_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, processes: int, dealt: list[str]
) -> None:
    """Eight cells on a machine that claims to have four GPUs: each takes those of its slot, and no two have one at the same time."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    width = slots("auto", SimpleNamespace(device="auto", processes=processes, threads=None))
    assert (width.count, width.devices) == (len(dealt), 4)
    code = (
        "import os, pathlib, sys, time; mine = os.environ['CUDA_VISIBLE_DEVICES']; folder = pathlib.Path(sys.argv[1])\n"
        "for gpu in mine.split(','): (folder / gpu).mkdir()\n"  # fails where another cell has it
        "time.sleep(0.2); print(mine)\n"
        "for gpu in mine.split(','): (folder / gpu).rmdir()"
    )
    made = sweep_of(tmp_path, [""] * 8, [[f"stage{n}"] for n in range(8)])
    made.slots, made.commands = width, [[sys.executable, "-c", code, str(tmp_path)]] * 8
    made.run()
    assert made.exits == dict.fromkeys(range(8), 0)
    assert {log.read_text().strip() for log in made.logs} == set(dealt)


# ---- what is said ---------------------------------------------------------------------------------------------------


def test_progress_is_read_as_it_was_written(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 50.0, 100.0, 100.0])
    monkeypatch.setattr("ldmlab.terminal.time.monotonic", lambda: next(clock))
    bar = Progress("samples @50%", 4000, every=0.0)
    bar.update(1000, {"loss": 0.3})
    text = f"before\n{capsys.readouterr().err}after\n"
    seen = read_progress(text)
    assert seen is not None and (seen.name, seen.share, seen.left) == ("samples @50%", "25%", 150.0)
    bar.update(4000)
    seen = read_progress(text + capsys.readouterr().err)
    assert seen is not None and (seen.share, seen.left) == ("100%", None)
    assert read_progress("nothing of the kind: 35% of it\n") is None


def test_a_stage_is_charged_to_the_first_cell_that_has_it(tmp_path: Path) -> None:
    both = stage(tmp_path, "extractor", 3600.0)
    cells = [
        CellForecast(["a"], "a", (both, stage(tmp_path, "one", 1800.0))),
        CellForecast(["b"], "b", (both, stage(tmp_path, "two", 1800.0), stage(tmp_path, "data", 9.0, "ready"))),
    ]
    text = summary(cells, 2, 1)
    assert "2 cells · 3 stages to make · about 2 hours · 30 MB · 2 side by side" in text
    assert "two (shared: extractor)" in text and "about 1:30:00" in text and "about 30:00" in text
    assert "about 1 hours" in summary(cells, 2, 2)  # on two GPUs


def test_labels_are_what_differs() -> None:
    assert labels([["a=1", "b=2", "c=1"], ["a=1", "b=3", "c=1"]]) == ["b=2", "b=3"]
    assert labels([["a=1"]]) == ["the only cell"]
