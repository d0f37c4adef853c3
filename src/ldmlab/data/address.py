"""Where shards far away are, and how a stream of them is opened."""

import subprocess
import tempfile
from pathlib import Path

from ldmlab.data.manifest import Manifest, parse_manifest
from ldmlab.errors import DataError

REMOTE = ("pipe:", "http://", "https://", "s3://")
_CURL = "curl --silent --show-error --fail --location --connect-timeout 30 --retry-delay 2 --retry"
_CLOSED_EARLY = (141, -13)  # the writer met SIGPIPE: whoever read had enough


def address_of(root: str, name: str) -> str:
    """Where a file of the set is: `name` in the place of `{shard}`, else after a slash."""
    if "{shard}" in root:
        return root.replace("{shard}", name)
    return f"{root.rstrip('/')}/{name}"


class Stream:
    """What a command writes, to be used as a context. OSError when the command fails, with the last line it said.

    command: words, or one text for the shell. What it says on stderr is kept back, and lost when it succeeds.
    """

    def __init__(self, command: str | list[str]):
        self._said = tempfile.TemporaryFile()  # noqa: SIM115, closed by __exit__
        try:
            self._process = subprocess.Popen(
                command, shell=isinstance(command, str), stdout=subprocess.PIPE, stderr=self._said
            )
        except FileNotFoundError:
            self._said.close()
            raise OSError(f"the program {command[0]} is not installed") from None
        assert self._process.stdout is not None
        self._output = self._process.stdout

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes, fewer than `size` at the end only; OSError when they ended because the command failed."""
        content = self._output.read(size)
        if (size < 0 or len(content) < size) and (code := self._process.wait()):
            raise OSError(self._reason(code))
        return content

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *error: object) -> None:
        self._output.close()
        code = self._process.wait()
        reason = self._reason(code)
        self._said.close()
        if code and code not in _CLOSED_EARLY and error[0] is None:
            raise OSError(reason)

    def _reason(self, code: int) -> str:
        self._said.seek(0)
        lines = [line for line in self._said.read().decode(errors="replace").splitlines() if line.strip()]
        return lines[-1].strip().rstrip(".") if lines else f"the command ended with exit code {code}"


def open_stream(url: str, retries: int = 30) -> Stream:
    """The bytes behind an address; http(s) tries again `retries` times where the trouble may pass (a timeout, a 503)."""
    if url.startswith("pipe:"):
        return Stream(url.removeprefix("pipe:"))
    if url.startswith("s3://"):
        return Stream(["aws", "s3", "cp", url, "-"])
    return Stream([*_CURL.split(), str(retries), url])


def fetch_manifest(manifest: str, option: str = "") -> tuple[Manifest, str]:
    """A manifest and its text, from a path or an address; `option` (path=value) is what a user typed. Raises DataError."""
    if str(manifest).startswith(REMOTE):
        what = f"{option}: its manifest.json" if option else f"manifest={manifest}"
        try:
            with open_stream(manifest, retries=3) as stream:
                text = stream.read().decode()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"{what} cannot be read: {error}. Check the address and the connection; the manifest that prepare wrote "
                "must lie beside the shards."
            ) from error
    else:
        if not Path(manifest).is_file():
            raise DataError(
                f"manifest={manifest}: no such file. Give the manifest.json that prepare wrote beside the shards."
            )
        text = Path(manifest).read_text()
    return parse_manifest(text, manifest), text
