"""A Slurm of this test's own (slurm.sh beside this file), and tiny commands for it."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("slurm.sh")


@pytest.fixture(scope="session")
def slurm() -> Iterator[dict[str, str]]:
    """The environment of commands that talk to it."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    if missing := [
        name for name in ("slurmctld", "slurmd", "sbatch", "munged") if shutil.which(name, path=path) is None
    ]:
        pytest.skip(f"no {', '.join(missing)} on this machine (Debian: apt-get install slurm-wlm munge)")
    if os.getuid() != 0:
        pytest.skip("slurmd starts jobs as root alone")
    # sockets have short paths, and munged wants no folder above that others may write to without a sticky bit
    folder = Path(tempfile.mkdtemp(prefix="ldmlab-slurm-"))
    try:
        conf = subprocess.run([SCRIPT, "start", folder], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
        yield {**os.environ, "SLURM_CONF": conf, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    finally:
        subprocess.run([SCRIPT, "stop", folder], check=False)
        shutil.rmtree(folder, ignore_errors=True)
