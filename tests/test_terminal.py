"""Tables line up; progress is a plain line now and then in a file and a bar on a terminal."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from ldmlab.terminal import Progress, clock, number, progress, table

SRC = Path(__file__).resolve().parents[1] / "src"


def test_a_table_lines_up_and_takes_every_cell_as_it_is() -> None:
    lines = [["stage", "id", "cost"], ["a · b", "[bold]x", "–"], ["long  name …", "", "12 345"], ["", "y" * 300, ""]]
    assert table(lines).splitlines() == [
        f" stage         id{' ' * 298}  cost", f" a · b         [bold]x{' ' * 293}  –", f" long  name …  {' ' * 300}  12 345",
        f"               {'y' * 300}",
    ]  # fmt: skip


def test_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    bar = Progress("denoiser", 2000, every=1000.0)
    for done in (500, 1000, 2000):
        bar.update(done, {"loss": 0.5})
    bar.say("a note")
    first, last, note = capsys.readouterr().err.splitlines()
    assert first.startswith(" denoiser      25%  500/2 000 img · ") and "loss 0.5" in first and first.endswith("left")
    assert last.startswith(" denoiser     100%  2 000/2 000 img · ") and note == "a note"
    Progress("silent", 10, show=False).update(10)
    with progress("reading", 4) as advance:
        advance(4)
    assert capsys.readouterr().err.startswith(" reading      100%  4/4 images")


def test_a_bar_on_a_terminal_gives_the_cursor_back_after_a_crash() -> None:
    code = (
        "from ldmlab.terminal import Progress\nb = Progress('x', 9)\nb.update(3)\nb.say('[note]')\nraise SystemExit(3)"
    )
    main, side = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-c", code], stderr=side, env={**os.environ, "PYTHONPATH": str(SRC), "TERM": "xterm"}
    )
    os.close(side)
    text = b""
    while True:
        try:
            text += os.read(main, 65536)
        except OSError:
            break
    assert done.returncode == 3 and b"3/9 img" in text and b"[note]" in text
    assert text.rfind(b"\x1b[?25h") > text.rfind(b"\x1b[?25l") >= 0


def test_numbers_and_clocks() -> None:
    assert (number(1234567), clock(59.6), clock(3725)) == ("1 234 567", "1:00", "1:02:05")
