"""A study as a W&B report: its specification block by block, and what the real client sends of it to a stand-in of the server."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import FakeStore
from reports.test_compression_page import study
from wandb_server import Server

from ldmlab.config.compose import load
from ldmlab.errors import ConfigError, UserError
from ldmlab.reports.mirror import command


def configured(store: FakeStore, *words: str) -> Any:
    return load([f"store={store.root}", "study=compression", "to=wandb", *words]).cfg


def specified(store: FakeStore, folders: list[Path]) -> dict[str, Any]:
    command.write(configured(store, "dry_run=true"), folders)
    found: dict[str, Any] = json.loads((store.root / "reports" / "wandb-compression.json").read_text())
    return found


def test_the_specification_has_each_part_of_the_study(fake_store: FakeStore) -> None:
    spec = specified(fake_store, study(fake_store))
    heads = {
        block["id"]: n for n, block in enumerate(spec["blocks"]) if block["type"] == "heading" and block["level"] == 2
    }
    assert list(heads) == ["claims", "components", "paper", "scores", "samples", "cost", "training", "protocol"]
    text = {
        id_: spec["blocks"][n + 1]["text"] for id_, n in heads.items() if spec["blocks"][n + 1]["type"] == "markdown"
    }
    title, question, verdicts, answer = spec["blocks"][:4]
    assert title["text"] == spec["description"] and question["text"].startswith("10 denoisers; ")
    assert "take f = 4; f = 8 cannot be told from it" in verdicts["text"].replace("\\", "")
    # figures are panels over runs that differ in their seeds alone: a mean with its spread
    assert spec["groupby"] == ["config.ldmlab.choices.ae"] and len(spec["runs"]) == len(set(spec["runs"])) == 10
    kinds = [(panel["type"], panel.get("y") or panel.get("metrics")) for panel in answer["panels"]]
    assert kinds[:3] == [("line", ["scores/fid"]), ("bar", ["scores/fid"]), ("scatter", "summary.scores/fid")]
    assert (
        answer["panels"][0]["x"] == "scores/images"
        and answer["panels"][0]["spread"] == "stddev"
        and answer["panels"][0]["mean"]
    )
    assert answer["panels"][2]["x"] == "config.ldmlab.f"
    # tables: a row a cell, and each less the baseline, in the page's own words
    rows = [row for row in text["scores"].splitlines() if row.startswith(("| kl", "| identity"))]
    assert len(rows) == 10 + 9 and "table.csv" not in text["scores"]
    assert "supported" in text["claims"] and "reference: r1" in text["protocol"].replace("\\", "")
    shown = [panel for block in spec["blocks"] if block["type"] == "panels" for panel in block["panels"]]
    assert [p["keys"] for p in shown if p["type"] == "media"] == [["samples/pictures"], ["reconstructions/pictures"]]
    assert any(p["type"] == "table" and p["key"] == "tables/scores" for p in shown)
    assert any(p["type"] == "line" and p["x"] == "denoiser/images" and "denoiser/train/loss" in p["y"] for p in shown)


def test_a_report_is_saved_in_place(fake_store: FakeStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("wandb_workspaces", reason="the extra wandb-reports is not installed")
    server = Server()
    for name, value in {
        "BASE_URL": server.url,
        "API_KEY": "a" * 40,
        "CONFIG_DIR": str(tmp_path),
        "CACHE_DIR": str(tmp_path),
    }.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    folders = study(fake_store)
    assert " made\n" in command.write(configured(fake_store), folders)
    assert " rewritten\n" in command.write(configured(fake_store), folders)
    ((id_, view),) = server.views.items()
    assert view["saves"] == 2 and view["entityName"] == "me" and view["displayName"] == "Study compression"
    ledger = json.loads((fake_store.root / "reports" / "wandb-compression.saved.json").read_text())
    assert ledger["me/ldmlab"]["id"] == id_ and id_.rstrip("=") in ledger["me/ldmlab"]["url"]
    blocks = json.loads(view["spec"])["blocks"]
    kinds = [block["type"] for block in blocks]
    spec = specified(fake_store, folders)
    assert kinds.count("heading") == sum(block["type"] == "heading" for block in spec["blocks"])
    assert kinds.count("panel-grid") == sum(block["type"] == "panels" for block in spec["blocks"])
    assert kinds.count("markdown-block") == sum(block["type"] == "markdown" for block in spec["blocks"])
    grid = next(block for block in blocks if block["type"] == "panel-grid")["metadata"]
    first = grid["panelBankSectionConfig"]["panels"][0]
    assert first["viewType"] == "Run History Line Plot" and first["config"]["metrics"] == ["scores/fid"]
    assert first["config"]["xAxis"] == "scores/images" and first["config"]["groupBy"] == "ldmlab.value.choices.ae"
    assert (first["config"]["groupAgg"], first["config"]["groupArea"]) == ("mean", "stddev")
    (runset,) = grid["runSets"]
    assert runset["grouping"] == [{"section": "config", "name": "ldmlab.value.choices.ae"}]
    assert all(run in json.dumps(runset["filters"]) for run in spec["runs"])
    server.mode = "error"
    server.close()
    monkeypatch.setenv("WANDB_TEST", "true")  # the client's own word for no second try, which it makes for 20 s
    with pytest.raises(UserError, match="W&B did not take the report"):
        command.write(configured(fake_store), folders)


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (["to=diffusers", "study=x"], "to=diffusers is for export.py"),
        (["to=wandb"], "Name it: study="),
        (["to=wandb", "mirror=true", "study=x"], "Write two commands"),
    ],
)
def test_what_does_not_go_together_is_refused(words: list[str], rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        command.wanted(load(words).cfg)
