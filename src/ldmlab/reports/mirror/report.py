"""A study's specification as a W&B report, through wandb-workspaces (optional extra `wandb-reports`). The only module that calls it."""

from pathlib import Path
from typing import Any

from ldmlab.errors import UserError
from ldmlab.reports.mirror.offline import import_wandb
from ldmlab.reports.mirror.specification import Block, specification
from ldmlab.reports.publish import missing_cells, shown
from ldmlab.reports.study import Counted
from ldmlab.store.files import read_json, write_json

HEIGHTS = {"media": 14, "table": 12}
WIDE = 24  # columns of a report's grid


def write(cfg: Any, folders: list[Path]) -> str:
    """Saves the report, or with dry_run=true writes its specification; returns what to print. Raises UserError when W&B refuses."""
    from ldmlab.pipeline import counts

    store, found = Path(cfg.store), counts.count(folders)
    spec = specification(folders, cfg.study, missing_cells(store, cfg.study), Counted(found.found, found.refused))
    place = (Path(cfg.out) if cfg.out else store / "reports") / f"wandb-{cfg.study}"
    if cfg.dry_run:
        path = place.with_suffix(".json")
        write_json(path, spec)
        kinds = [block["type"] for block in spec["blocks"]]
        return f" {len(kinds)} blocks of {len(folders)} runs, nothing sent\n   specification  {shown(path)}"
    return save(spec, cfg.tracking.project, cfg.tracking.entity, place.with_suffix(".saved.json"))


def save(spec: dict[str, Any], project: str, entity: str | None, ledger: Path) -> str:
    """Writes the report into the project, in the place of its earlier version. ledger: which reports were saved, by project."""
    wandb = import_wandb()
    try:
        from wandb_workspaces.reports import v2 as reports
    except ImportError:
        raise UserError(
            "to=wandb needs wandb-workspaces: pip install 'ldmlab[wandb-reports]'. dry_run=true does without."
        ) from None
    saved = read_json(ledger) if ledger.is_file() else {}
    try:
        entity = entity or wandb.Api().default_entity
        own = saved.get(f"{entity}/{project}") or {}
        made = built(reports, spec, entity, project)
        made.id = own.get("id", "")
        made.save()
    except Exception as error:  # of every kind: the client's, the server's, pydantic's
        said = " ".join(str(error).split())[:300]
        raise UserError(
            f"W&B did not take the report ({type(error).__name__}: {said}). Mirror the study's runs first (mirror=true), and check "
            f"WANDB_API_KEY or wandb login; when the report was deleted there, remove {ledger}."
        ) from None
    write_json(ledger, saved | {f"{entity}/{project}": {"id": made.id, "url": made.url}})
    return f" W&B report {'rewritten' if own else 'made'}\n   page  {made.url}"


def built(reports: Any, spec: dict[str, Any], entity: str, project: str) -> Any:
    """The specification as wandb-workspaces' objects."""
    return reports.Report(
        project=project, entity=entity, title=spec["title"], description=spec["description"], width="fluid",
        blocks=[block_of(reports, block, spec, entity, project) for block in spec["blocks"]],
    )  # fmt: skip


def block_of(reports: Any, block: Block, spec: dict[str, Any], entity: str, project: str) -> Any:
    match block["type"]:
        case "heading":
            return (reports.H1 if block["level"] == 1 else reports.H2)(text=block["text"])
        case "text":
            return reports.P(text=block["text"])
        case "markdown":
            return reports.MarkdownBlock(text=block["text"])
    ids = ", ".join(f"'{id}'" for id in spec["runs"])
    order = [reports.OrderBy(name=reports.Config("ldmlab.f"), ascending=True)]
    runset = reports.Runset(
        entity=entity,
        project=project,
        name=spec["title"],
        filters=f"ID in [{ids}]",
        groupby=spec["groupby"],
        order=order,
    )
    if all(panel["type"] == "media" for panel in block["panels"]):  # pictures of single runs
        runset.groupby = []
    panels, y = [], 0
    half = WIDE // 2
    for n, panel in enumerate(block["panels"]):
        tall = HEIGHTS.get(panel["type"])
        layout = reports.Layout(x=0 if tall else half * (n % 2), y=y, w=WIDE if tall else half, h=tall or 8)
        panels.append(panel_of(reports, panel, spec["groupby"], layout))
        y += tall or (8 if n % 2 else 0)
    return reports.PanelGrid(runsets=[runset], panels=panels)


def panel_of(reports: Any, panel: Block, groupby: list[str], layout: Any) -> Any:
    # a panel groups by one key; where runs differ in several, the runs themselves are grouped
    group = (
        {"groupby": reports.Config(groupby[0].removeprefix("config."))} if len(groupby) == 1 else {"aggregate": True}
    )
    spread = {"groupby_aggfunc": "mean", "groupby_rangefunc": panel["spread"]} if "spread" in panel else {}
    match panel["type"]:
        case "line":
            return reports.LinePlot(
                title=panel["title"], x=panel["x"], y=panel["y"], log_y=panel["log_y"], layout=layout, **group, **spread
            )
        case "bar":
            return reports.BarPlot(title=panel["title"], metrics=panel["metrics"], layout=layout, **group, **spread)
        case "scatter":
            x, y = (metric(reports, panel[axis]) for axis in ("x", "y"))
            return reports.ScatterPlot(title=panel["title"], x=x, y=y, log_x=panel["log_x"], layout=layout)
        case "media":
            return reports.MediaBrowser(
                title=panel["title"], media_keys=panel["keys"], mode="grid", grid_x_axis=panel["columns"], grid_y_axis=panel["rows"],
                layout=layout,
            )  # fmt: skip
        case "table":
            return reports.WeavePanelSummaryTable(table_name=panel["key"], layout=layout)
    raise AssertionError(panel["type"])


def metric(reports: Any, path: str) -> Any:
    section, _, name = path.partition(".")
    return reports.Config(name) if section == "config" else reports.SummaryMetric(name)
