"""Where shards far away are, and how a stream of them is opened."""

from pathlib import Path
from typing import Any

from ldmlab.data.manifest import Manifest, parse_manifest
from ldmlab.errors import DataError

REMOTE = ("pipe:", "http://", "https://", "s3://")


def address_of(root: str, name: str) -> str:
    """Where a file of the set is: `name` in the place of `{shard}`, else after a slash."""
    if "{shard}" in root:
        return root.replace("{shard}", name)
    return f"{root.rstrip('/')}/{name}"


def open_stream(url: str) -> Any:
    """A readable stream, to be used as a context."""
    from webdataset import gopen

    if url.startswith("s3://"):
        return gopen(f"pipe:aws s3 cp '{url}' -")
    return gopen(url)


def fetch_manifest(manifest: str) -> tuple[Manifest, str]:
    """A manifest and its text, from a path or an address. Raises DataError."""
    if str(manifest).startswith(REMOTE):
        try:
            with open_stream(manifest) as stream:
                text = stream.read().decode()
        except Exception as error:
            raise DataError(f"manifest={manifest} cannot be read: {error}.") from error
    else:
        if not Path(manifest).is_file():
            raise DataError(
                f"manifest={manifest}: no such file. Give the manifest.json that prepare wrote beside the shards."
            )
        text = Path(manifest).read_text()
    return parse_manifest(text, manifest), text
