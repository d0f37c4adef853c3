"""The command itself: a table, JSON lines, exit code 0; complaints in one line."""

import json
from pathlib import Path

import pytest
import torch
from whole_commands import run_here

from ldmlab.bench import command
from ldmlab.bench.record import Column, Report, append, digits, with_quartiles
from ldmlab.config.compose import load
from ldmlab.errors import ConfigError
from ldmlab.pipeline.timing import Clock, Ratio, interleave, speed_ratio


def test_ratios_are_taken_round_by_round() -> None:
    # a machine that slows down between rounds changes both contenders, and no ratio
    assert speed_ratio([1.0, 10.0, 5.0], [2.0, 20.0, 10.0]) == Ratio(2.0, 2.0, 2.0)
    assert speed_ratio([1, 1, 1, 1, 1], [1, 2, 3, 4, 5]) == Ratio(3, 2, 4)


def test_contenders_take_turns_and_the_first_round_is_not_counted() -> None:
    calls: list[str] = []
    ticks = iter(range(100))
    clock = Clock("ticks", lambda: float(next(ticks)))
    seconds = interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3, clock)
    assert seconds == {"a": [1.0] * 3, "b": [1.0] * 3}
    assert "".join(calls) in ("abbaabba", "baabbaab")


def test_table_and_json_lines(tmp_path: Path) -> None:
    columns = [Column("what", "what"), Column("speed", "speed", with_quartiles), Column("n", "n", digits)]
    rows = [{"what": "a", "speed": Ratio(1.5, 1.25, 1.75), "n": 12345.6}, {"what": "long name", "n": 0.5}]
    report = Report("test", columns, rows, ["a note"])
    assert report.text().splitlines() == [
        " what       speed                 n",
        " a          1.500 [1.250, 1.750]  12,346",
        " long name  –                     0.5",
        " a note",
    ]
    for _ in range(2):
        append(report, tmp_path / "new" / "bench.jsonl", "python src/bench.py", torch.device("cpu"))
    lines = [json.loads(line) for line in (tmp_path / "new" / "bench.jsonl").read_text().splitlines()]
    assert len(lines) == 4
    assert lines[0]["speed"] == {"median": 1.5, "low": 1.25, "high": 1.75}
    assert {"bench", "date", "command", "machine", "code", "torch", "threads", "device", "notes"} <= lines[0].keys()


def test_complaints(tmp_path: Path) -> None:
    for words, message in (
        ([f"out={tmp_path}"], "is a folder"),
        (["runtime.processes=2"], "one process"),
        (["compare=family", "bench.family=[kl_f4,kl_f7]"], "kl_f7"),
    ):
        with pytest.raises(ConfigError, match=message):
            command.run(load(words).cfg, "python src/bench.py " + " ".join(words))
    with pytest.raises(ConfigError, match="compare must be one of unet"):
        load(["compare=unets"])


TINY = {
    "composed": ["debug=tiny", "data.resolution=32", "eval.batch_size=4", "bench.batch_size=8", "eval.precision=bf16"],
    "unet": ["compare=unet", "bench.shapes=[tiny]", "bench.batch_size=1"],
    "codebook": ["compare=codebook", "ae=vq_f8", "data.resolution=64"],
    "autoencoder": ["compare=autoencoder", "ae=kl_f4", "ae.network.width=16", "bench.batch_size=1", "data.resolution=32",
                    "ae/loss/perceptual=none"],
    "family": ["compare=family", "bench.family=[kl_f2,vq_f4]", "ae.network.width=16", "bench.batch_size=1",
               "ae/loss/perceptual=none", "data.resolution=32"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_the_command_prints_a_table_and_records_it(name: str, tmp_path: Path) -> None:
    out = tmp_path / "bench.jsonl"
    done = run_here("bench", [*TINY[name], "bench.rounds=1", f"out={out}", f"store={tmp_path / 'store'}"])
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows
    assert {row["bench"] for row in rows} == {name}
    assert all(row["threads"] == 1 for row in rows)
    assert len(done.stdout.splitlines()) > len(rows)  # a heading, a line for each row, notes
    if name == "composed":
        assert [row["what"].split(",")[0] for row in rows] == [
            "encode", "decode", "first stage's training step", "denoiser's training step", "sampler step",
        ]  # fmt: skip
        assert rows[-1]["precision"] == "bf16"  # as samples are drawn
        assert all(row["images_per_second"] > 0 and 0 < row["utilisation"] < 2 for row in rows)
