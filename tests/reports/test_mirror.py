"""W&B as a mirror of the store: what its offline folders hold, read by wandb's own reader, and what reaches a server that misbehaves."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import chain, pairwise, repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FakeStore, little_pictures, write_json, write_rows
from PIL import Image
from wandb_server import Server

from ldmlab.config.compose import load
from ldmlab.errors import UserError
from ldmlab.reports.collect import read_run
from ldmlab.reports.mirror import command, upload
from ldmlab.reports.mirror.offline import OfflineRun, Project, earlier, rows_sent, was_sent
from ldmlab.reports.mirror.payload import PICTURES, payload

PROJECT = Project("ldmlab", None)


@pytest.fixture
def wandb_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    """wandb's own files in the test's folder, and no way to a network."""
    for name in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    yield monkeypatch


@pytest.fixture
def server(wandb_home: pytest.MonkeyPatch) -> Iterator[Server]:
    found = Server()
    wandb_home.setenv("WANDB_BASE_URL", found.url)
    yield found
    found.close()


def records(folder: Path) -> list[dict[str, Any]]:
    """The log of an offline folder by `wandb leet inspect`."""
    words = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    lines = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    return [json.loads(line) for line in lines]


def summary_of(folder: Path) -> dict[str, Any]:
    words = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(folder)]
    found: dict[str, Any] = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)[
        "summary"
    ]
    return found


def of(kind: str, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record[kind] for record in found if record["type"] == kind]


def history(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record["item"] for record in of("history", found)]


def logged(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def mirrored(store: FakeStore, folders: list[Path], *words: str) -> str:
    return command.write(load([f"store={store.root}", "mirror=true", *words]).cfg, folders)


def two_cells(store: FakeStore) -> list[Path]:
    """Two runs of a study that share their first stage; one with pictures as conditions."""
    shared = store.autoencoder()
    cells = []
    for n, id_ in enumerate(("d1", "d2")):
        stages = [
            shared,
            store.denoiser(f"{id_}aa"),
            *store.snapshot(f"{id_}s", 2000, 96.4),
            *store.snapshot(f"{id_}t", 40000, 12.8),
        ]
        cells.append(
            store.run(
                stages,
                f"r{n}",
                f"cell-{n}",
                studies=["compression"],
                created=f"2026-01-0{n + 1}",
                choices={"ae": "kl_f4"},
            )
        )
    np.save(store.root / "samples" / "ddim50-d2t5a" / "conditions-pictures.npy", little_pictures(4, seed=9))
    return cells


def test_an_offline_folder_holds_what_the_store_has(fake_store: FakeStore, wandb_home: pytest.MonkeyPatch) -> None:
    folders = two_cells(fake_store)
    wandb_home.setenv("WANDB_MODE", "offline")
    said = mirrored(fake_store, folders)
    for n, folder in enumerate(folders):
        (own,) = earlier(folder, f"r{n}")
        assert f"wandb sync {own}" in said
        found = records(own)
        (run,) = of("run", found)
        assert (run["run_id"], run["run_group"], run["job_type"]) == (f"r{n}", "compression", "scores")
        assert {"compression", "denoiser", "scores"} <= set(run["tags"])
        # configuration and ids
        config = run["config"]["update"]
        assert config["ldm"] == {"network": {"width": 32}} and config["seed"] == 0
        assert (
            config["ldmlab"]["stages"]["autoencoder"] == "4ab07e11" and len(config["ldmlab"]["stages"]["scores"]) == 2
        )
        # every number of every log, those of the shared first stage too, once each
        rows = history(found)
        assert [row["_step"] for row in rows] == list(range(len(rows)))
        for stage, name in (("autoencoder", "kl_f4-4ab07e11"), ("denoiser", f"unet_tiny-d{n + 1}aa")):
            own_rows = [row for row in rows if f"{stage}/step" in row]
            wanted = logged(fake_store.root / stage / name)
            assert len(own_rows) == len(wanted)
            for row, line in zip(own_rows, sorted(wanted, key=lambda line: line["images"]), strict=True):
                numbers = {k: v for k, v in line.items() if k not in ("images", "step", "split", "time")}
                assert {k: row[f"{stage}/{line['split']}/{k}"] for k in numbers} == pytest.approx(numbers)
                assert row[f"{stage}/images"] == line["images"]
        axes = {record["glob_name"]: record["step_metric"] for record in of("metric", found) if "glob_name" in record}
        assert axes["denoiser/*"] == "denoiser/images" and axes["autoencoder/*"] == "autoencoder/images"
        check_scores_and_pictures(own, found, fake_store, n)
        check_lineage(found, made=n == 0)


def check_scores_and_pictures(folder: Path, found: list[dict[str, Any]], store: FakeStore, n: int) -> None:
    rows = history(found)
    scored = [row for row in rows if "scores/fid" in row]
    assert [(row["scores/images"], row["scores/fid"]) for row in scored] == [(2000, 96.4), (40000, 12.8)]
    summary = summary_of(folder)
    raw = json.loads((store.root / "scores" / f"shapes-d{n + 1}t5c" / "scores.json").read_text())["scores"]
    for key, score in raw.items():
        assert [summary[f"scores/{key}{end}"] for end in ("_low", "", "_high")] == [
            score[k] for k in ("low", "value", "high")
        ]
    assert summary["autoencoder/psnr"] == 28.412 and summary["state"] == "finished"
    table = json.loads((folder / "files" / summary["tables/scores"]["path"]).read_text())
    assert len(table["data"]) == 2 * len(raw) + 7  # a row a metric and snapshot; of the first stage
    heads = table["columns"]
    line = next(
        r for r in table["data"] if r[heads.index("metric")] == "fid" and r[heads.index("snapshot images")] == 40000
    )
    assert line[heads.index("value")] == 12.8 and json.loads(line[heads.index("card")])["sampler"] == "ddim"
    shown = [row for row in rows if "samples/pictures.captions" in row]
    assert [row["samples/images"] for row in shown] == [2000, 40000]
    captions, files = shown[1]["samples/pictures.captions"], shown[1]["samples/pictures.filenames"]
    assert len(captions) == len(files) == PICTURES and captions[3] == "image 3, seed 3, class star"
    stored = np.load(store.root / "samples" / f"ddim50-d{n + 1}t5a" / "images.npy")
    assert np.array_equal(np.asarray(Image.open(folder / "files" / files[3])), stored[3])
    if n:
        assert shown[1]["samples/conditions.captions"][0] == "condition of image 0, seed 0, class circle"
    (sheet,) = (
        row["reconstructions/pictures.filenames"] for row in rows if "reconstructions/pictures.filenames" in row
    )
    assert (folder / "files" / sheet[0]).is_file()


def check_lineage(found: list[dict[str, Any]], made: bool) -> None:
    """The first run made the first stage; the second one uses it and makes its own denoiser and samples."""
    own = {a["type"]: a for a in of("artifact", found) if a["type"] in ("autoencoder", "denoiser")}
    assert "4ab07e11" in own["autoencoder"]["aliases"] and own["autoencoder"]["name"] == "autoencoder-kl_f4"
    assert own["autoencoder"].get("use_after_commit", False) is not made and not own["denoiser"].get("use_after_commit")
    metadata = json.loads(own["denoiser"]["metadata"])
    assert metadata["id"] in own["denoiser"]["aliases"] and metadata["stage"] == "denoiser"
    assert sum(a["type"] == "samples" for a in of("artifact", found)) == 2


def test_stages_of_one_kind_keep_their_names_while_they_come(fake_store: FakeStore) -> None:
    stages = [fake_store.denoiser(id_, points=3) | {"stage": "cooldown"} for id_ in ("aa", "bb")]
    folder = fake_store.run(stages)
    whole = payload(read_run(folder), {}, "none").rows
    assert [row.group for row in whole] == 3 * ["cooldown-aa"] + 3 * ["cooldown-bb"]
    (fake_store.root / "denoiser" / "unet_tiny-bb" / "metrics.jsonl").write_text("")
    assert [row.values for row in payload(read_run(folder), {}, "none").rows] == [row.values for row in whole[:3]]


@pytest.mark.parametrize(
    ("kind", "files"),
    [("none", None), ("metadata", {"card.json", "config.yaml"}), ("files", {"card.json", "config.yaml", "w"})],
)
def test_artifacts_hold_what_is_asked_for(fake_store: FakeStore, kind: str, files: set[str] | None) -> None:
    folder = fake_store.finished()
    stage = fake_store.root / "autoencoder" / "kl_f4-4ab07e11"
    (stage / "w").write_text("weights")
    write_json(stage / "done.json", {"files": {"w": {"sha256": "0", "bytes": 7}}})
    found = {a.type: a for a in payload(read_run(folder), {}, kind).artifacts}
    assert (set(found["autoencoder"].files) if found else None) == files


def test_rows_only_ever_grow(fake_store: FakeStore) -> None:
    """What is told of a run that goes on is the beginning of what is told of it later: nothing above a checkpoint, no stage
    before the one above it is finished."""
    folder = fake_store.finished()
    raw = json.loads((folder / "run.json").read_text())
    lines = logged(fake_store.root / "denoiser" / "unet_tiny-c01fe9aa")

    def told(done: int, rows: int, checkpoint: int | None) -> list[str]:
        """With so many finished stages, rows in the denoiser's log, and the checkpoint's image count."""
        stages = [entry | {"state": "done" if i < done else "unfinished"} for i, entry in enumerate(raw["stages"])]
        stage = fake_store.root / "denoiser" / "unet_tiny-c01fe9aa"
        write_rows(stage / "metrics.jsonl", lines[:rows])
        if checkpoint is not None:
            (stage / "checkpoints" / f"{checkpoint:012d}").mkdir(parents=True, exist_ok=True)
        return [
            repr(row.values)
            for row in payload(read_run(folder, raw | {"stages": stages}), {}, "none").rows
            if "pictures" not in repr(row)
        ]

    steps = [
        told(0, 0, None),
        told(1, 20, None),
        told(1, 50, 4000),
        told(1, 70, 12000),
        told(2, 200, None),
        told(4, 200, None),
        told(6, 200, None),
    ]
    assert [len(step) for step in steps] == [0, 126, 126 + 20, 126 + 60, 326, 327, 328]
    assert all(later[: len(step)] == step for step, later in pairwise(steps))


def test_a_run_is_sent_once_through_whatever_happens(
    fake_store: FakeStore, server: Server, wandb_home: pytest.MonkeyPatch
) -> None:
    """Uploads that hang, fail, are cut off in their middle, get nonsense or lose the server; then mirror=true: every row, once."""
    folders = two_cells(fake_store)
    wandb_home.setattr(upload, "CHECKS", (0.0,))
    one = payload(read_run(folders[0]), {}, "metadata")
    for mode in ("hang", "error", "reset", "wrong"):
        server.modes = chain(repeat("ok", 5), repeat(mode))  # something gets through
        path = OfflineRun(folders[0], PROJECT, len(server.runs.get("r0", {"history": ()})["history"])).close(one)
        began = time.monotonic()
        assert not upload.finish_sync(upload.start_sync(path, live=False), path, one, PROJECT, 3.0)
        assert time.monotonic() - began < 10 and any(seen == mode for seen, _ in server.requests)
    with pytest.raises(UserError, match=r"W&B: |did not answer"):
        upload.there(PROJECT, [one], 3.0)
    with pytest.raises(UserError, match="did not end, so W&B may have a part"):
        mirrored(fake_store, folders, "tracking=wandb")
    server.modes = None
    assert "2 runs are in W&B project ldmlab" in mirrored(fake_store, folders)
    for n, folder in enumerate(folders):
        steps = [row["_step"] for row in server.history(f"r{n}")]
        assert steps == list(range(len(payload(read_run(folder), {}, "none").rows)))
    (shared,) = (a for a in server.artifacts.values() if a["type"] == "autoencoder")
    assert shared["aliases"] >= {"4ab07e11"} and shared["runs"] - {None} == {"r0"} and shared["used"] == {"r1"}
    first = server.history("r0")
    mirrored(fake_store, folders[:1])
    assert server.history("r0") == first and server.runs["r0"]["summary"]["scores/fid"] == 12.8
    assert server.runs["r0"]["groupName"] == "compression"
    server.close()  # gone for good
    with pytest.raises(UserError, match="WANDB_MODE=offline"):
        mirrored(fake_store, folders, "tracking.finish_seconds=2")


def test_offline_folders_follow_on_each_other(fake_store: FakeStore, wandb_home: pytest.MonkeyPatch) -> None:
    """A folder that was never sent is replaced; after one that was sent, the next holds what came since."""
    folder = fake_store.finished()
    full = payload(read_run(folder), {}, "none")
    first = OfflineRun(folder, PROJECT, rows_sent(folder, full.id, PROJECT)).close(full)
    second = OfflineRun(folder, PROJECT, rows_sent(folder, full.id, PROJECT)).close(full)
    assert earlier(folder, full.id) == [second] and first != second
    (second / f"run-{full.id}.wandb.synced").touch()  # wandb's own mark
    assert was_sent(second) and rows_sent(folder, full.id, PROJECT) == len(full.rows)
    assert rows_sent(folder, full.id, Project("other", None)) == 0
    third = OfflineRun(folder, PROJECT, len(full.rows)).close(full)
    found = records(third)
    assert not history(found) and earlier(folder, full.id) == [second, third]
    summary = summary_of(third)
    assert summary["scores/fid"] == 12.83 and summary["denoiser/images"] == 40000
    with pytest.raises(UserError, match="another process"):
        one, two = OfflineRun(folder, PROJECT), OfflineRun(folder, PROJECT)
        one.update(full)
        try:
            two.update(full)
        finally:
            one.close(full)
