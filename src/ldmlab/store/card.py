"""What a result was made with: versions, code, machine, time. Written beside every result as `card.json`."""

import hashlib
import os
import platform
import subprocess
import time
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "torchvision",
    "accelerate",
    "numpy",
    "scipy",
    "torchmetrics",
    "torch-fidelity",
    "pillow",
    "hydra-core",
)
ROOT = Path(__file__).resolve().parents[3]


@cache
def versions() -> dict[str, str]:
    """Versions of Python, of this package and of what it computes with."""
    import ldmlab

    found = {"python": platform.python_version(), "ldmlab": ldmlab.__version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


@cache
def code() -> dict[str, str | None]:
    """Git commit of the working tree, and a hash of what differs from it (None when nothing does, or without git)."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout if done.returncode == 0 else None

    commit, diff = git("rev-parse", "HEAD"), git("diff", "HEAD", "--", "src", "conf", "sweeps")
    return {
        "commit": commit.strip() if commit else None,
        "diff": hashlib.sha256(diff.encode()).hexdigest()[:12] if diff else None,
    }


def cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@cache
def machine() -> dict[str, Any]:
    """Where it ran: processor, cores of this process, GPU if one is there, operating system. No host name leaves a card."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": cpu_name(), "cores": cores, "gpu": gpu, "system": f"{platform.system()} {platform.release()}"}


def stamp(seconds_since_epoch: float) -> str:
    """UTC, ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds_since_epoch))


def stage_card(
    address: Any,
    began: float,
    seconds: float,
    cpu_seconds: float | None,
    processes: int,
    device: str,
    altered: dict[str, dict[str, str]],
) -> dict[str, Any]:
    """The card of a finished stage. `seconds` counts all attempts, `started` is the last one's. The id is made of `stage`,
    `version`, `options` and `upstream`.

    cpu_seconds: of all processes and threads together, which other work on the machine does not change; None on a GPU and for
        a stage that was stopped and resumed.
    altered: `Store.altered_upstream`: files that the stage stands on and that were not what was sealed (verify=false).
    """
    card = {
        "stage": address.stage, "name": address.name, "id": address.id, "version": address.version,
        "options": address.options, "upstream": address.upstream,
        "started": stamp(began), "ended": stamp(time.time()), "seconds": round(seconds, 3),
        "cpu_seconds": None if cpu_seconds is None else round(cpu_seconds, 3),
        "processes": processes, "device": device, "machine": machine(), "versions": versions(), "code": code(),
    }  # fmt: skip
    return card | ({"altered_upstream": altered} if altered else {})
