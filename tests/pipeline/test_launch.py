"""Memory that a process keeps: a block that is wanted again is not mapped again."""

import os
import platform
import subprocess
import sys

import pytest

AGAIN = """
import resource
from ldmlab.pipeline.launch import keep_memory
{keep}
def work(): return [b"x" * (48 * 2**20) for _ in range(2)]  # blocks above any threshold of glibc
for _ in range(3): work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep: str, environment: dict[str, str]) -> int:
    """Pages that the system must provide for blocks of a size that was freed just before."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | environment
    done = subprocess.run(
        [sys.executable, "-c", AGAIN.format(keep=keep)], env=env, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_stays_unless_the_environment_says_otherwise() -> None:
    usual = faults("", {})
    assert usual > 100
    assert faults("keep_memory()", {}) < usual / 10
    assert faults("keep_memory()", {"MALLOC_TRIM_THRESHOLD_": "131072"}) > usual / 2
