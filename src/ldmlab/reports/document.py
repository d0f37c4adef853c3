"""One small model of a page: sections of text, notes, tables, figures and pictures, written as HTML, Markdown and files.

A page of a run, of a study of samples and of a study of first stages are all a `Document`. `index.html` opens from disk
without a network: no script, pictures inside. `report.md` says the same in text; figures and sheets of pictures lie
beside it. Equal documents give equal bytes: nothing here reads a clock.

Text may hold `code` between backticks and links [to a file](table.csv) of the page's own folder; all else is plain.
"""

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ldmlab.reports.drawing import DrawnFigure, files
from ldmlab.reports.figures import JOINED, Figure
from ldmlab.reports.pictures import Picture, Pictures, data_uri, sheet
from ldmlab.store.files import atomic

TEMPLATES = Path(__file__).parent / "templates"
INLINE = re.compile(r"(`[^`\n]+`|\[[^\]\n]+\]\([\w./#-]+\))")  # code and links, the only markup of a text
Look = Literal["", "best", "tied", "state", "code"]
NoteKind = Literal[
    "protocol", "comparability", "ranking", "tie", "warning", "comparison", "missing", "remark", "interval"
]


class Note(NamedTuple):
    """A sentence about numbers. mark: the letter by which cells of a table refer to it."""

    kind: NoteKind
    text: str
    mark: str = ""


class Entry(NamedTuple):
    """What stands in a table's cell. mark: of the note that says why it is not comparable. under: a second line."""

    text: str
    interval: str = ""
    mark: str = ""
    look: Look = ""
    href: str = ""
    under: str = ""
    anchor: str = ""


@dataclass(frozen=True)
class Table:
    """Rows as long as `heads`. left: how many of the first columns are words. second: head of the column that holds the
    entries' second lines in Markdown. faint: rows that stand back. explained: (second line, tooltip) of a head, by head;
    on the page alone.
    """

    heads: list[str]
    rows: list[list[Entry]]
    title: str = ""
    left: int = 1
    notes: Sequence[Note] = ()
    second: str = ""
    faint: frozenset[int] = frozenset()
    explained: Mapping[str, tuple[str, str]] = field(default_factory=dict)


class Paragraph(NamedTuple):
    text: str
    look: Literal["", "small", "lead", "muted"] = ""


class Notes(NamedTuple):
    """Sentences under each other. look: verdicts are the answer of a study, the others are small."""

    notes: Sequence[Note]
    look: Literal["", "verdicts"] = ""


class Code(NamedTuple):
    text: str


class FactList(NamedTuple):
    facts: list[tuple[str, str]]  # (name, text)


class Anchors(NamedTuple):
    """A list that pictures lead to. Not in Markdown, where nothing leads to it."""

    items: list[tuple[str, str]]  # (anchor, text)


class Headline(NamedTuple):
    label: str
    text: str
    unit: str
    interval: str
    anchor: str


class Headlines(NamedTuple):
    """Numbers that are read first. Not in Markdown, where they stand in the table of scores alone."""

    items: list[Headline]


class Figures(NamedTuple):
    figures: list[Figure]


class Columns(NamedTuple):
    """Blocks beside each other where the page is wide."""

    left: list["Block"]
    right: list["Block"]


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


Block = (
    Paragraph | Notes | Code | FactList | Anchors | Headlines | Table | Figures | Pictures | Picture | Columns | Section
)  # fmt: skip


@dataclass(frozen=True)
class Document:
    """A page. over: the small line above the title. missing: what is not finished; goes_on: what to do about it."""

    title: str
    over: str
    lead: str
    sections: list[Section]
    command: str = ""
    missing: Sequence[Note] = ()
    goes_on: str = ""
    wide: bool = False
    beside: Sequence[tuple[str, str]] = ()  # other pages in its folder: (file, what it is for)
    links: Mapping[str, str] = field(
        default_factory=dict
    )  # source of a point → anchor; with JOINED at its end, of a mean

    def markdown(self) -> str:
        lines = [f"# {escape(self.title)}", "", escape(self.lead)]
        lines += ["", *markdown(Code(self.command))] if self.command else []
        lines += ["", *(f"- missing: {escape(note.text)}" for note in self.missing)] if self.missing else []
        return "\n".join([*lines, "", *joined(self.sections, 2)]).rstrip() + "\n"

    def html(self, template: str = "page.html.j2", **more: Any) -> str:
        """template: the page's own, or one that extends it and takes `more`."""
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
        from markupsafe import Markup
        from markupsafe import escape as safe

        def inline(text: str) -> Markup:
            return Markup("").join(_inline(part, safe, Markup) for part in INLINE.split(text))

        loader, strict, ids = FileSystemLoader(TEMPLATES), StrictUndefined, frozenset(anchors(self.sections))
        made = Environment(loader=loader, autoescape=True, undefined=strict, trim_blocks=True, lstrip_blocks=True)
        made.filters |= {"inline": inline, "kind": lambda block: type(block).__name__}
        made.filters |= {"draw": self._drawn, "spots": lambda figure: self._drawing(figure).spots}
        made.filters["anchor"] = lambda place: self._linked(place) or anchor_of(place, ids)
        return made.get_template(template).render(page=self, **more)

    @functools.cached_property
    def _drawings(self) -> dict[int, DrawnFigure]:
        """Of the figures, by identity: the page and its folder show the same drawing."""
        return {}

    def _drawing(self, figure: Figure) -> DrawnFigure:
        return self._drawings.setdefault(id(figure), DrawnFigure(figure))

    def _drawn(self, figure: Figure, scheme: Literal["light", "dark"]) -> str:
        drawing = self._drawing(figure)
        return data_uri((drawing.light if scheme == "light" else drawing.dark).encode(), "image/svg+xml")

    def _linked(self, source: str) -> str:
        """A point that is a mean leads to the row of its first cell, below which the others stand."""
        first, *more = source.split(JOINED)
        return self.links.get(f"{first}{JOINED}" if more else first, "")

    def files(self) -> dict[str, bytes]:
        """{path: contents}: the page, its text, and the figures and sheets of pictures that the text shows."""
        contents = {"index.html": self.html().encode(), "report.md": self.markdown().encode()}
        for block in walk(self.sections):
            if isinstance(block, Figures):
                for figure in block.figures:
                    contents |= files(figure, self._drawing(figure))
            elif isinstance(block, Pictures | Picture) and block.name:
                contents[f"pictures/{block.name}.png"] = sheet(block) if isinstance(block, Pictures) else block.png
        return contents


# ---- Markdown -------------------------------------------------------------------------------------------------------


def markdown(block: Block, level: int = 2) -> list[str]:
    """The lines of a block. level: of a section's heading."""
    match block:
        case Paragraph(text):
            return [escape(text)]
        case Notes(notes):
            return [f"- {f'({note.mark}) ' if note.mark else ''}{escape(note.text)}" for note in notes]
        case Code(text):
            return [f"    {line}" for line in text.splitlines()]
        case FactList(facts):
            return [f"- {escape(name)}: {escape(text)}" for name, text in facts]
        case Figures(figures):
            return [line for f in figures for line in (f"![{escape_all(f.alt)}](figures/{f.name}.svg)", "")][:-1]
        case Pictures() | Picture():
            return [f"![{escape_all(block.alt)}](pictures/{block.name}.png)"] if block.name else []
        case Columns(left, right):
            return joined([*left, *right], level)
        case Table():
            return [*_table(block), *([""] if block.notes else []), *markdown(Notes(block.notes))]
        case Section():
            inside = [] if block.only_page else joined(block.blocks, level + 1)
            return [*([f"{'#' * level} {escape(block.title)}", ""] if block.title else []), *inside] if inside else []
    return []


def _table(table: Table) -> list[str]:
    def entry(cell: Entry) -> str:
        text = escape_all(" ".join(part for part in (cell.text, cell.interval) if part))
        text = {"best": f"**{text}**", "tied": f"≈ {text}", "code": f"`{cell.text}`"}.get(cell.look, text)
        return f"{text} ({cell.mark})" if cell.mark else text

    heads = [*table.heads, *([table.second] if table.second else [])]
    align = ["---" if i < table.left or i >= len(table.heads) else "---:" for i in range(len(heads))]
    lines = [f"| {' | '.join(escape_all(head) for head in heads)} |", f"| {' | '.join(align)} |"]
    for row in table.rows:
        more = [escape_all(row[0].under) or "–"] if table.second else []
        lines.append(f"| {' | '.join([*map(entry, row), *more])} |")
    return lines


def joined(blocks: Sequence[Any], level: int) -> list[str]:
    """The Markdown of blocks, an empty line between them."""
    lines: list[str] = []
    for block in blocks:
        own = markdown(block, level)
        lines += ([""] if lines and own else []) + own
    return lines


def _inline(part: str, safe: Any, markup: Any) -> Any:
    if part.startswith("`") and INLINE.fullmatch(part):
        return markup("<code>{}</code>").format(part[1:-1])
    if part.startswith("[") and INLINE.fullmatch(part):
        text, target = part[1:-1].split("](")
        return markup('<a href="{}">{}</a>').format(target, text)
    return safe(part)


def anchors(blocks: Sequence[Any]) -> Iterator[str]:
    """What a link of the page can lead to."""
    for block in walk(blocks):
        if isinstance(block, Section) and block.id:
            yield block.id
        elif isinstance(block, Table):
            yield from (row[0].anchor for row in block.rows if row[0].anchor)


def anchor_of(place: str, ids: frozenset[str]) -> str:
    """Where the page speaks of a stage folder `scores/shapes-<id>`: its cell, else its row of the plan; "" where nowhere."""
    stage, _, name = place.partition("/")
    id_ = name.rpartition("-")[2]
    return next((anchor for anchor in (f"cell-{id_}", f"stage-{stage}-{id_}") if anchor in ids), "")


def walk(blocks: Sequence[Any]) -> Iterator[Any]:
    """Every block, those inside others too."""
    for block in blocks:
        yield block
        if isinstance(block, Section):
            yield from walk(block.blocks)
        elif isinstance(block, Columns):
            yield from walk([*block.left, *block.right])


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
