"""Two nodes that share a store: one dies and comes back, one stands still, one never comes; their clocks are a day apart."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from namespaces import Node, kill, two_nodes

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3600)]

TINY = [
    "src/train.py", "debug=tiny", "ae=pca_f4", "data.resolution=32", "data.train_images=64", "data.val_images=16", "eval=none",
    "ldm.fit.batch_size=8", "ldm.fit.warmup=0", "ldm.fit.cooldown=0", "until=denoiser", "runtime.device=cpu",
    "runtime.log_seconds=1e-9", "runtime.checkpoint_seconds=1", "runtime.timeout=120",
]  # fmt: skip
IMAGES = 3200  # of a training that is still at work when the second node has come back


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with all that the denoiser stands on, so that nodes do nothing but train it."""
    store = tmp_path_factory.mktemp("latents") / "store"
    words = [word for word in TINY if not word.startswith("until=")]
    subprocess.run([sys.executable, *words, "until=latents", f"store={store}"], cwd=ROOT, check=True)
    return store


def until(condition: Callable[[], object], what: str, *alive: "subprocess.Popen[bytes]", seconds: float = 900) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        assert all(process.poll() is None for process in alive), f"a process ended before {what}"
        time.sleep(0.1)


def checkpoint(store: Path) -> int:
    """Images of the newest checkpoint of the denoiser; -1 without one."""
    return max((int(path.name) for path in store.glob("denoiser/*/checkpoints/0*")), default=-1)


def text(log: Path) -> str:
    return log.read_text() if log.exists() else ""


def torchrun(node: Node, first: Node, *words: str) -> list[str]:
    """One node's torchrun: one or two nodes train, as many as are there."""
    return [
        sys.executable, "-m", "torch.distributed.run", "--nnodes=1:2", "--nproc-per-node=1", "--max-restarts=9", "--monitor-interval=1",
        "--rdzv-backend=c10d", f"--rdzv-endpoint={first.address}:29411", "--rdzv-conf=last_call_timeout=8", f"--local-addr={node.address}",
        *words,
    ]  # fmt: skip


def test_a_node_dies_the_other_goes_on_and_then_both_do(tmp_path: Path, latents: Path) -> None:
    store, logs = shutil.copytree(latents, tmp_path / "store"), [tmp_path / "a.log", tmp_path / "b.log"]
    with two_nodes(tmp_path) as nodes:
        commands = [torchrun(node, nodes[0], *TINY, f"ldm.fit.images={IMAGES}", f"store={store}") for node in nodes]
        for node in nodes:  # with one store for all rounds, a node that joins later is never told of it (torch 2.15)
            node.environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        first, second = (node.start(log, *command) for node, log, command in zip(nodes, logs, commands, strict=True))
        try:
            until(lambda: checkpoint(store) > 0, "a checkpoint by both", first, second)
            died = time.monotonic()
            kill(second)
            until(lambda: "does not answer any more" in text(logs[0]), "the dead node's name", first)
            assert f"rank 1 on {nodes[1].name} (node 1 of 2) does not answer any more" in text(logs[0])
            at = checkpoint(store)
            until(lambda: checkpoint(store) > at, "a checkpoint by one", first)
            alone = time.monotonic() - died
            second = nodes[1].start(logs[1], *commands[1])
            until(lambda: "stopped: SIGTERM" in text(logs[0]), "the first node to stop for the second")
            assert first.wait() == second.wait() == 0
        finally:
            print("\n".join(f"== {log.name}\n{text(log)}" for log in logs))
            kill(first)
            kill(second)
    assert text(logs[0]).count("resumes at") == 2  # alone, and with the second node again
    print(f"alone after {alone:.0f} s")
    (done,) = store.glob("denoiser/*/done.json")
    rows = [json.loads(row) for row in (done.parent / "metrics.jsonl").read_text().splitlines()]
    assert [row["images"] for row in rows if row["split"] == "train"] == list(range(8, IMAGES + 8, 8))  # each step once
    assert json.loads((done.parent / "card.json").read_text())["processes"] == 2


def ranks(node: Node, first: Node, rank: int) -> dict[str, str]:
    """What a launcher tells one rank of two nodes."""
    return {
        "RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": first.address,
        "MASTER_PORT": "29412",
    }  # fmt: skip


def test_a_slow_node_is_waited_for_and_one_that_stands_still_is_named(tmp_path: Path, latents: Path) -> None:
    store, logs = shutil.copytree(latents, tmp_path / "store"), [tmp_path / "a.log", tmp_path / "b.log"]
    words = [sys.executable, *TINY[:-1], "runtime.timeout=30", f"ldm.fit.images={IMAGES}", f"store={store}"]
    with two_nodes(tmp_path) as nodes:
        first, second = (nodes[n].start(logs[n], *words, **ranks(nodes[n], nodes[0], n)) for n in (0, 1))
        try:
            until(lambda: checkpoint(store) > 0, "a checkpoint by both", first, second)
            kill(second, signal.SIGSTOP)
            time.sleep(3)
            kill(second, signal.SIGCONT)
            at = checkpoint(store)
            until(lambda: checkpoint(store) > at, "a checkpoint after three seconds' stand-still")
            kill(second, signal.SIGSTOP)
            assert first.wait() == 1
        finally:
            print("\n".join(f"== {log.name}\n{text(log)}" for log in logs))
            kill(first)
            kill(second)
    said = text(logs[0])
    assert f"error: rank 1 on {nodes[1].name} (node 1 of 2) does not answer any more (runtime.timeout=30 s" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("missing", [0, 1])
def test_a_node_that_never_comes_is_named(tmp_path: Path, missing: int) -> None:
    log, there = tmp_path / "log", 1 - missing
    with two_nodes(tmp_path) as nodes:
        words = [sys.executable, *TINY[:-1], "runtime.timeout=2", f"store={tmp_path / 'store'}"]
        process = nodes[there].start(log, *words, **ranks(nodes[there], nodes[0], there))
        assert process.wait() == 1
    print(text(log))
    said = {
        1: f"error: rank 1 (node 1 of 2) did not come within runtime.timeout=2 s. Here: rank 0 on {nodes[0].name} (node 0 of 2).",
        0: f"error: rank 1 on {nodes[1].name} does not reach rank 0 at {nodes[0].address}:29412 within runtime.timeout=2 s.",
    }
    assert said[missing] in text(log) and "Traceback" not in text(log)
