"""One small model of a page: sections of text, notes, tables, figures and pictures, written as HTML, Markdown and files.

A page of a run, of a study of samples and of a study of first stages are all a `Document`. `index.html` opens from disk
without a network: no script, pictures inside. `report.md` says the same in text; figures and sheets of pictures lie
beside it. Equal documents give equal bytes: nothing here reads a clock.

Text may hold `code` between backticks and links [to a file](table.csv) of the page's own folder; all else is plain.
"""

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ldmlab.reports.drawing import svg
from ldmlab.reports.figures import Figure, files
from ldmlab.reports.pictures import Picture, Pictures, data_uri, sheet
from ldmlab.store.files import atomic

TEMPLATES = Path(__file__).parent / "templates"
INLINE = re.compile(r"(`[^`\n]+`|\[[^\]\n]+\]\([\w./#-]+\))")  # code and links, the only markup of a text
NoteKind = Literal["protocol", "comparability", "ranking", "tie", "warning", "comparison", "missing", "remark"]


@dataclass(frozen=True)
class Note:
    """A sentence about numbers. mark: the letter by which cells of a table refer to it."""

    kind: NoteKind
    text: str
    mark: str = ""

    def markdown(self) -> str:
        return f"- ({self.mark}) {escape(self.text)}" if self.mark else f"- {escape(self.text)}"


@dataclass(frozen=True)
class Entry:
    """What stands in a table's cell. mark: of the note that says why it is not comparable. under: a second line."""

    text: str
    interval: str = ""
    mark: str = ""
    look: Literal["", "best", "tied", "state", "code"] = ""
    href: str = ""
    under: str = ""
    anchor: str = ""

    def markdown(self) -> str:
        text = escape_all(" ".join(part for part in (self.text, self.interval) if part))
        text = {"best": f"**{text}**", "tied": f"≈ {text}", "code": f"`{self.text}`"}.get(self.look, text)
        return f"{text} ({self.mark})" if self.mark else text


@dataclass(frozen=True)
class Table:
    """Rows as long as `heads`. left: how many of the first columns are words. second: head of the column that holds the
    entries' second lines in Markdown. faint: rows that stand back.
    """

    heads: list[str]
    rows: list[list[Entry]]
    title: str = ""
    left: int = 1
    notes: Sequence[Note] = ()
    second: str = ""
    faint: frozenset[int] = frozenset()

    def markdown(self) -> list[str]:
        heads = [*self.heads, *([self.second] if self.second else [])]
        align = ["---" if i < self.left or i >= len(self.heads) else "---:" for i in range(len(heads))]
        lines = [f"| {' | '.join(escape_all(head) for head in heads)} |", f"| {' | '.join(align)} |"]
        for row in self.rows:
            more = [escape_all(row[0].under) or "–"] if self.second else []
            lines.append(f"| {' | '.join([*(entry.markdown() for entry in row), *more])} |")
        return [*lines, *([""] if self.notes else []), *(note.markdown() for note in self.notes)]


@dataclass(frozen=True)
class Text:
    text: str
    look: Literal["", "small", "lead", "muted"] = ""

    def markdown(self) -> list[str]:
        return [escape(self.text)]


@dataclass(frozen=True)
class Notes:
    """Sentences under each other. look: verdicts are the answer of a study, the others are small."""

    notes: Sequence[Note]
    look: Literal["", "verdicts"] = ""

    def markdown(self) -> list[str]:
        return [note.markdown() for note in self.notes]


@dataclass(frozen=True)
class Code:
    text: str

    def markdown(self) -> list[str]:
        return [f"    {line}" for line in self.text.splitlines()]


@dataclass(frozen=True)
class FactList:
    """(name, text) pairs."""

    facts: list[tuple[str, str]]

    def markdown(self) -> list[str]:
        return [f"- {escape(name)}: {escape(text)}" for name, text in self.facts]


@dataclass(frozen=True)
class Anchors:
    """(anchor, text): a list that pictures lead to. Of no use in Markdown, where nothing leads to it."""

    items: list[tuple[str, str]]

    def markdown(self) -> list[str]:
        return []


@dataclass(frozen=True)
class Headline:
    """A number that is read first."""

    label: str
    text: str
    unit: str
    interval: str
    anchor: str


@dataclass(frozen=True)
class Headlines:
    items: list[Headline]

    def markdown(self) -> list[str]:
        return []  # the same numbers stand in the table of scores


@dataclass(frozen=True)
class Figures:
    figures: list[Figure]

    def markdown(self) -> list[str]:
        return [line for f in self.figures for line in (f"![{escape_all(f.alt)}](figures/{f.name}.svg)", "")][:-1]


@dataclass(frozen=True)
class Columns:
    """Blocks beside each other where the page is wide."""

    left: list["Block"]
    right: list["Block"]

    def markdown(self) -> list[str]:
        return joined([*self.left, *self.right])


@dataclass(frozen=True)
class Section:
    """A headed part of the page. fold: shown when it is opened. muted: after the title, in grey. only_page: what is too
    long for the text (configurations, cards).
    """

    title: str
    blocks: Sequence["Block"]
    id: str = ""
    fold: bool = False
    open: bool = False
    muted: str = ""
    only_page: bool = False

    def markdown(self, level: int = 2) -> list[str]:
        inside = [] if self.only_page else joined(self.blocks, level + 1)
        heading = [f"{'#' * level} {escape(self.title)}", ""] if self.title else []
        return [*heading, *inside] if inside else []


Block = Text | Notes | Code | FactList | Anchors | Headlines | Table | Figures | Pictures | Picture | Columns | Section


@dataclass(frozen=True)
class Document:
    """A page. over: the small line above the title. missing: what is not finished; goes_on: what to do about it."""

    title: str
    over: str
    lead: str
    sections: list[Section]
    command: str = ""
    missing: list[Note] = field(default_factory=list)
    goes_on: str = ""
    wide: bool = False

    def markdown(self) -> str:
        head = [f"# {escape(self.title)}", "", escape(self.lead)]
        head += ["", *Code(self.command).markdown()] if self.command else []
        head += ["", *(f"- missing: {escape(note.text)}" for note in self.missing)] if self.missing else []
        return "\n".join([*head, "", *joined(self.sections)]).rstrip() + "\n"

    def html(self) -> str:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
        from markupsafe import Markup
        from markupsafe import escape as safe

        def inline(text: str) -> Markup:
            return Markup("").join(_inline(part, safe, Markup) for part in INLINE.split(text))

        loader = FileSystemLoader(TEMPLATES)
        made = Environment(
            loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        made.filters |= {"inline": inline, "kind": lambda block: type(block).__name__, "draw": draw}
        return made.get_template("page.html.j2").render(page=self)

    def files(self) -> dict[str, bytes]:
        """{path: contents}: the page, its text, and the figures and sheets of pictures that the text shows."""
        contents = {"index.html": self.html().encode(), "report.md": self.markdown().encode()}
        for block in walk(self.sections):
            if isinstance(block, Figures):
                contents |= {name: data for figure in block.figures for name, data in files(figure).items()}
            elif isinstance(block, Pictures) and block.name:
                contents[f"pictures/{block.name}.png"] = sheet(block)
            elif isinstance(block, Picture) and block.name:
                contents[f"pictures/{block.name}.png"] = block.png
        return contents


def _inline(part: str, safe: Any, markup: Any) -> Any:
    if part.startswith("`") and INLINE.fullmatch(part):
        return markup("<code>{}</code>").format(part[1:-1])
    if part.startswith("[") and INLINE.fullmatch(part):
        text, target = part[1:-1].split("](")
        return markup('<a href="{}">{}</a>').format(target, text)
    return safe(part)


def draw(figure: Figure, scheme: Literal["light", "dark"]) -> str:
    return data_uri(svg(figure, scheme).encode(), "image/svg+xml")


def walk(blocks: Sequence[Any]) -> Iterator[Any]:
    """Every block, those inside others too."""
    for block in blocks:
        yield block
        if isinstance(block, Section):
            yield from walk(block.blocks)
        elif isinstance(block, Columns):
            yield from walk([*block.left, *block.right])


def joined(blocks: Sequence[Any], level: int = 2) -> list[str]:
    """The Markdown of blocks, an empty line between them. level: of the headings."""
    lines: list[str] = []
    for block in blocks:
        own = block.markdown(level) if isinstance(block, Section) else block.markdown()
        lines += ([""] if lines and own else []) + own
    return lines


def _escaped(text: str) -> str:
    for mark in "\\`*_[]<>|":
        text = text.replace(mark, f"\\{mark}")
    return text


def escape_all(text: str) -> str:
    """Text in which no character is syntax of Markdown."""
    return " ".join(_escaped(text).split())


def escape(text: str) -> str:
    """The same, but for code and links to files; a link into the page is its text alone."""
    text = re.sub(r"\[([^\]]+)\]\(#[^)]*\)", r"\1", text)
    parts = [part if INLINE.fullmatch(part) else _escaped(part) for part in INLINE.split(text)]
    return " ".join("".join(parts).split())


def entries(rows: Sequence[Sequence[str]]) -> list[list[Entry]]:
    """Rows of plain texts; what is `value [low, high]` becomes a value with its interval."""

    def entry(text: str) -> Entry:
        value, bracket, interval = text.partition(" [")
        return Entry(value, f"[{interval}") if bracket and interval.endswith("]") else Entry(text)

    return [[entry(text) for text in row] for row in rows]


def csv_text(records: Sequence[dict[str, Any]]) -> str:
    """Records as CSV in full precision, a column for every name that occurs; None is empty."""
    out = io.StringIO()
    names = list(dict.fromkeys(name for record in records for name in record))
    writer = csv.DictWriter(out, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


def write(out: Path, contents: dict[str, bytes], entry: str = "index.html") -> Path:
    """Writes each file beside its place and renames it into it, `entry` last; then removes what an earlier page listed
    and this one has not. `written.json` is that list, so nothing is ever removed that a page did not write.
    """
    listing = out / "written.json"
    before = json.loads(listing.read_text(encoding="utf-8")) if listing.is_file() else []
    contents = contents | {listing.name: (json.dumps(sorted(contents), indent=1) + "\n").encode()}
    for name in sorted(contents, key=lambda name: (name == entry, name)):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        with atomic(out / name) as beside:
            beside.write_bytes(contents[name])
    for name in set(before) - set(contents):
        stale = (out / name).resolve()
        if stale.is_relative_to(out.resolve()):
            stale.unlink(missing_ok=True)
    return out / entry
