"""Whole commands of a script in this process: the same lines from typed words to exit code, without the seconds of a start.

What is about the process itself (sweeps, what a start costs) is started as one; what is killed, and ranks, are forked (`ranks.py`).
"""

import contextlib
import io
import runpy
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]


def run_here(script: str, words: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    """What `python src/<script>.py <words>` prints and exits with; an exception that it would end with is raised."""
    argv = [f"src/{script}.py", *words]
    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    with (
        contextlib.chdir(ROOT), patch.object(sys, "argv", argv), warnings.catch_warnings(),
        contextlib.redirect_stdout(out), contextlib.redirect_stderr(err),
    ):  # fmt: skip
        warnings.simplefilter("ignore")
        try:
            runpy.run_path(argv[0], run_name="__main__")
        except SystemExit as end:
            code = end.code or 0
    assert isinstance(code, int), code
    return subprocess.CompletedProcess(argv, code, out.getvalue(), err.getvalue())
