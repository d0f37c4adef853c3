"""The pages of a store's site: what is running, studies, runs, stages, disk use. Each is a `Document` with a script for live curves."""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from ldmlab.reports import document as doc
from ldmlab.reports import numbers
from ldmlab.reports.document import Entry
from ldmlab.reports.overview import Overview, StageFolder, ago, size_text
from ldmlab.reports.points import script_json
from ldmlab.reports.records import Run

SHOWN = ("loss", "psnr", "rate", "perceptual")  # of a stage that is being built; all quantities are on its own page
UNEQUAL = "Brackets: 95 % interval. Protocols may differ between runs: a study's page says where."
HEADLINE = ("fid", "psnr", "is", "precision", "recall")


def url(*parts: str) -> str:
    """`/run/<name>`: quoted."""
    return "/" + "/".join(quote(part) for part in parts)


Live = Mapping[str, Any]


def rendered(title: str, over: str, lead: str, sections: Sequence[doc.Section], live: Live | None = None) -> bytes:
    """live: what the page's script shows: {"watch": path of JSON that it asks for again} or {"stages": […]} once."""
    page = doc.Document(title, over, lead, [section for section in sections if section.blocks], wide=True)
    return page.html("site.html.j2", live=script_json(live or {})).encode()


def _file(place: str) -> str:
    """Where the site has a file of the store, by its path in it."""
    return url("file", *place.split("/"))


def home(store: Overview) -> bytes:
    stages, runs, studies, reports = store.stages(), store.runs(), store.studies(), store.reports()
    others = store.others()
    total = sum(stage.size for stage in stages) + sum(others.values())
    lead = f"{_count(runs, 'run')}, {_count(studies, 'study', 'studies')}, {_count(stages, 'stage folder')}, {size_text(total)} on disk."
    sections = [
        doc.Section("Studies", [_studies(store)] if studies else [], "studies"),
        doc.Section("Runs", [_runs(runs)] if runs else [], "runs"),
        doc.Section("Pages of several runs", [_reports(reports)] if reports else [], "reports"),
        doc.Section("Disk use", [_disk(stages, others)] if stages else [], "disk"),
    ]
    if not stages and not runs:
        sections = [doc.Section("Nothing here yet", [doc.Code("python src/train.py")])]
    return rendered(store.root.name, str(store.root), lead, sections, {"watch": "/live.json"})


def _count(things: Any, one: str, many: str = "") -> str:
    return f"{len(things)} {one if len(things) == 1 else many or f'{one}s'}"


def live(store: Overview) -> dict[str, Any]:
    """What is being built now, with its curves."""
    return {"stages": [_live(store, stage) for stage in store.stages() if stage.state == "running"]}


def _live(store: Overview, stage: StageFolder) -> dict[str, Any]:
    curves = store.curves(stage)
    named = [curve for name in SHOWN for curve in curves if curve["name"] == name]
    last = max((line["points"][-1][0] for curve in curves for line in curve["lines"]), default=None)
    return {
        "title": stage.kind, "name": stage.name, "href": url("stage", stage.kind, stage.name), "holder": stage.holder,
        "sign": ago(stage.changed), "images": last, "target": store.target(stage), "curves": named or curves[:2],
    }  # fmt: skip


# ---- tables of the first page ---------------------------------------------------------------------------------------


def _studies(store: Overview) -> doc.Table:
    rows = []
    members = [names for *_, names in store.runs()]
    for name, jobs in store.studies().items():
        done, failed = sum(job.code == 0 for job in jobs), sum(job.code not in (0, None) for job in jobs)
        waiting = len(jobs) - done - failed
        said = [f"{done} done", f"{failed} failed" if failed else "", f"{waiting} not ended" if waiting else ""]
        state = ", ".join(filter(None, said)) if jobs else "–"
        runs = sum(name in names for names in members)
        look: doc.Look = "state" if failed or waiting else ""
        rows.append([Entry(name, href=url("study", name)), Entry(state, look=look), Entry(str(runs))])
    return doc.Table(["study", "cells of its last sweep", "runs in the store"], rows, left=2)


def _runs(runs: list[tuple[str, Run | str, list[str]]]) -> doc.Table:
    read = [run for _, run, _ in runs if isinstance(run, Run)]
    records = [record for run in read for record in _scored(run)]
    metrics = [metric for key in HEADLINE for metric in numbers.metrics_of(records) if metric.key == key]
    rows = []
    for folder, run, studies in runs:
        label, said = (run.label, f"{run.id} · {run.created}") if isinstance(run, Run) else (folder, "")
        first = Entry(label, href=url("run", folder), under=said)
        if isinstance(run, str):
            rows.append([first, Entry("damaged", look="state"), Entry("–"), *[Entry("–")] * len(metrics)])
            continue
        state = ", ".join(f"{stage.stage} {stage.state}" for stage in run.unfinished[:1]) or "done"
        scores = {key: score for record in reversed(_scored(run)) for key, score in record.scores.items()}
        own = [numbers.shown(scores[m.key], m.factor) if m.key in scores else ("–", "") for m in metrics]
        entries = [Entry(text, interval) for text, interval in own]
        look: doc.Look = "" if state == "done" else "state"
        rows.append([first, Entry(state, look=look), Entry(", ".join(studies) or "–"), *entries])
    heads = ["run", "state", "studies", *(metric.head for metric in metrics)]
    return doc.Table(heads, rows, left=3, notes=[doc.Note("remark", UNEQUAL)] if metrics else ())


def _scored(run: Run) -> list[Any]:
    last = run.last_scored
    return [r for r in (last.scores if last is not None else None, run.first_stage) if r is not None and r.scores]


def _reports(reports: list[tuple[str, str]]) -> doc.Table:
    rows = [[Entry(title, href=_file(place)), Entry(place.split("/")[1], look="code")] for place, title in reports]
    return doc.Table(["page", "folder in reports/"], rows, left=2)


def _disk(stages: list[StageFolder], others: Mapping[str, int]) -> doc.Table:
    by_kind: dict[str, list[StageFolder]] = {}
    for stage in stages:
        by_kind.setdefault(stage.kind, []).append(stage)
    rows = []
    for kind, own in sorted(by_kind.items(), key=lambda item: -sum(stage.size for stage in item[1])):
        states = [str(sum(stage.state == state for stage in own)) for state in ("done", "running", "unfinished")]
        size = size_text(sum(stage.size for stage in own))
        rows.append([Entry(kind, href=url("stages", kind)), *map(Entry, states), Entry(size)])
    for place, bytes_ in sorted(others.items(), key=lambda item: -item[1]):
        rows.append([Entry(f"{place}/"), *[Entry("–")] * 3, Entry(size_text(bytes_))])
    return doc.Table(["stage", "done", "running", "unfinished", "on disk"], rows)


# ---- stages, runs, studies ------------------------------------------------------------------------------------------


def kind(store: Overview, name: str) -> bytes | None:
    """All folders of one kind of stage."""
    own = [stage for stage in store.stages() if stage.kind == name]
    rows = []
    for stage in sorted(own, key=lambda stage: -stage.size):
        href = "" if stage.state == "outside the store" else url("stage", name, stage.name)
        state = Entry(stage.state, look="" if stage.state == "done" else "state")
        texts = (numbers.seconds(stage.seconds), size_text(stage.size), f"{ago(stage.changed)} ago")
        rows.append([Entry(stage.name, href=href), state, *map(Entry, texts)])
    if not own:
        return None
    table = doc.Table(["folder", "state", "time", "on disk", "changed"], rows, left=2)
    return rendered(name, "stages", f"{_count(own, 'folder')}, the largest first.", [doc.Section("", [table])])


def stage(store: Overview, kind: str, name: str) -> bytes | None:
    """One stage folder: its files, its curves, the runs that it belongs to."""
    found = store.stage(kind, name)
    if found is None or found.state == "outside the store":
        return None
    files = [[Entry(each, href=_file(f"{found.place}/{each}")), Entry(size_text(n))] for each, n in store.files(found)]
    users = [
        (folder, run)
        for folder, run, _ in store.runs()
        if isinstance(run, Run) and any(record.place == found.place for record in run.stages)
    ]
    lines = [[Entry(run.label, href=url("run", folder)), Entry(run.command, look="code")] for folder, run in users]
    used = doc.Table(["run", "command"], lines, left=2)
    sections = [
        doc.Section("Runs that it belongs to", [used] if users else []),
        doc.Section("Files", [doc.Table(["file", "size"], files)] if files else []),
    ]
    said = [found.state, numbers.seconds(found.seconds) if found.seconds else "", size_text(found.size), found.holder]
    shown = curves(store, kind, name) or {}
    if found.state == "running":
        shown |= {"watch": url("curves", kind, name) + ".json"}
    return rendered(found.name, f"stage {kind}", f"{', '.join(filter(None, said))}.", sections, shown)


def curves(store: Overview, kind: str, name: str) -> dict[str, Any] | None:
    """What the page of a stage asks for again while it is being built."""
    found = store.stage(kind, name)
    if found is None or found.state == "outside the store":
        return None
    every = sorted(store.curves(found), key=lambda curve: curve["name"] not in SHOWN)
    return {"stages": [_live(store, found) | {"curves": every}]}


def run(store: Overview, folder: str) -> bytes | None:
    """One run: its stages with states, sizes and curves."""
    known = store.run(folder)
    if known is None:
        return None
    found, studies = known
    if isinstance(found, str):
        return rendered(folder, "run", f"This run cannot be read. {found}", [])
    rows, live = [], []
    for record in found.stages:
        kind, _, name = record.place.partition("/")
        at = store.stage(kind, name) if name else None
        state = at.state if at is not None and at.state == "running" else record.state
        href = url("stage", kind, name) if at is not None else ""
        rows.append([
            Entry(record.stage, href=href), Entry(record.id, look="code"), Entry(state, look="" if state == "done" else "state"),
            Entry(record.what), Entry(numbers.seconds(record.seconds)), Entry("–" if at is None else size_text(at.size)),
        ])  # fmt: skip
        if at is not None and (shown := _live(store, at))["curves"]:
            live.append(shown)
    page = store.inside("runs", folder, "index.html")
    table = doc.Table(["stage", "id", "state", "what", "time", "on disk"], rows, left=4)
    own = f"[its page with scores and samples]({_file(f'runs/{folder}/index.html')})"
    links = [own] if page is not None and page.is_file() else []
    links += [f"[study {name}]({url('study', name)})" for name in studies]
    sections = [doc.Section("Stages", [table]), doc.Section("Command", [doc.Code(found.command)])]
    over = f"run {found.id} · {found.created}"
    return rendered(found.label, over, ", ".join([found.title, *links]) + ".", sections, {"stages": live})


def study(store: Overview, name: str) -> bytes | None:
    """The cells of a study's last sweep with their logs, its runs, and its page or the command that makes it."""
    jobs = store.studies().get(name)
    if jobs is None:
        return None
    members = [(folder, run, names) for folder, run, names in store.runs() if name in names]
    pages = [(place, title) for place, title in store.reports() if f"study={name}" in _markdown(store, place).split()]
    rows = []
    for n, job in enumerate(jobs):
        state = "not ended" if job.code is None else "done" if job.code == 0 else f"failed, exit code {job.code}"
        log = store.inside(job.log)
        rows.append([
            Entry(str(n), href=_file(job.log) if log is not None and log.is_file() else ""),
            Entry(state, look="" if job.code == 0 else "state"), Entry(job.words, look="code"),
        ])  # fmt: skip
    made: list[doc.Block] = [doc.Paragraph(f"[{title}]({_file(place)})") for place, title in pages]
    command = f"python src/report.py study={name} store={store.root}"
    made = made or [doc.Paragraph("Its page is not made yet:"), doc.Code(command)]
    sections = [
        doc.Section("", made),
        doc.Section("Cells of its last sweep", [doc.Table(["log", "state", "words"], rows, left=3)] if rows else []),
        doc.Section("Runs", [_runs(members)] if members else []),
    ]
    lead = f"{_count(jobs, 'cell')} in its last sweep, {_count(members, 'run')} in the store."
    return rendered(name, "study", lead, sections)


def _markdown(store: Overview, place: str) -> str:
    path = store.inside(place.replace("index.html", "report.md"))
    return path.read_text(encoding="utf-8") if path is not None and path.is_file() else ""


def refused(title: str, why: str) -> bytes:
    return rendered(title, "", why, [])
