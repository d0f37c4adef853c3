"""Two nodes on one machine: network namespaces with a cable between them, each with a host name and a clock of its own."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

TOMORROW = """
import time
for name, unit in (("time", 1), ("time_ns", 10**9)):
    setattr(time, name, lambda now=getattr(time, name), unit=unit: now() + 86_400 * unit)
"""  # sitecustomize.py of the node whose clock is a day ahead (libfaketime breaks time.sleep of Python 3.11)


@dataclass
class Node:
    """A node's namespace, its address, its file of host names and the environment of its processes."""

    name: str
    address: str
    interface: str
    hosts: Path
    environment: dict[str, str] = field(default_factory=dict)

    def start(self, log: Path, *command: str, **environment: str) -> "subprocess.Popen[bytes]":
        """A process group on the node, whose output is appended to `log`."""
        prepare = f'hostname {self.name}; mount --bind {self.hosts} /etc/hosts; exec "$@"'
        inside = ["ip", "netns", "exec", self.name, "unshare", "--uts", "--mount"]
        words = [*inside, "sh", "-c", prepare, "sh", *command]
        own = {"GLOO_SOCKET_IFNAME": self.interface, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        with log.open("ab") as file:
            return subprocess.Popen(
                words, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **own, **self.environment, **environment},
                start_new_session=True,
            )  # fmt: skip


def kill(process: "subprocess.Popen[bytes]", number: int = signal.SIGKILL) -> None:
    """A signal to all that the process has started: what a node's power switch does."""
    for session in (process.pid, *_below(process.pid)):
        try:
            os.kill(session, number)
        except ProcessLookupError:
            continue
    if number == signal.SIGKILL:
        process.wait()


def _below(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                found += [int(path.parent.name), *_below(int(path.parent.name))]
        except OSError:
            continue
    return found


@contextmanager
def two_nodes(folder: Path) -> Iterator[tuple[Node, Node]]:
    """Skips the test, with the reason, where namespaces may not be made. The second node's clock is a day ahead."""
    if shutil.which("ip") is None or shutil.which("unshare") is None:
        pytest.skip("no ip and unshare on this machine (Debian: iproute2, util-linux)")
    id = os.getpid() % 10_000
    hosts = folder / "hosts"
    hosts.write_text(f"127.0.0.1 localhost\n10.77.0.1 ldm{id}a\n10.77.0.2 ldm{id}b\n")
    first, second = (Node(f"ldm{id}{side}", f"10.77.0.{n}", f"v{id}{side}", hosts) for n, side in ((1, "a"), (2, "b")))
    try:
        _ip("link", "add", first.interface, "type", "veth", "peer", "name", second.interface)
        for node in (first, second):
            _ip("netns", "add", node.name)
            _ip("link", "set", node.interface, "netns", node.name)
            _ip("-n", node.name, "addr", "add", f"{node.address}/24", "dev", node.interface)
            for device in (node.interface, "lo"):
                _ip("-n", node.name, "link", "set", device, "up")
        (folder / "clock").mkdir()
        (folder / "clock/sitecustomize.py").write_text(TOMORROW)
        second.environment["PYTHONPATH"] = os.pathsep.join(
            [str(folder / "clock"), os.environ.get("PYTHONPATH", "")]
        ).rstrip(os.pathsep)
        yield first, second
    finally:
        for node in (first, second):
            subprocess.run(["ip", "netns", "delete", node.name], capture_output=True)
        subprocess.run(["ip", "link", "delete", first.interface], capture_output=True)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no network namespaces here: ip {' '.join(words)}: {done.stderr.strip()}")
