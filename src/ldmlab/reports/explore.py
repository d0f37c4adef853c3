"""explore.html: a study to be asked. Choose axes and colour, brush points; the table and the pictures of equal noise follow.

One file beside index.html that needs no network: Vega-Lite draws (the chart is declared with Altair, the JavaScript of Vega is
inside), and `explore.js` fills in the chosen columns. The pictures lie in `explore/` beside it. Both packages are the optional
extra `explore`; without them there is no such page, and the command says so.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ldmlab.reports import document as doc
from ldmlab.reports import gallery
from ldmlab.reports.drawing import THEMES
from ldmlab.reports.points import Explored, script_json

HOW = "Drag over points to choose them, or tap one. Nothing chosen: all of them."
EXPLORE, GALLERY = (
    ("explore.html", "Explore: axes, brushing, pictures"),
    ("gallery.html", "Gallery: the same noise in all cells"),
)
ABSENT = "explore.html was not made: it needs altair and vl-convert-python. Install them: pip install 'ldmlab[explore]'"


def available() -> bool:
    """Whether the packages of the extra are there."""
    return find_spec("altair") is not None and find_spec("vl_convert") is not None


def beside(explored: Explored) -> list[tuple[str, str]]:
    """(file, what it is for) of the pages that runs like these get beside index.html; none for a single point, or equal ones."""
    if len(explored.points) < 2 or not explored.columns:
        return []
    found = [EXPLORE] if available() else []
    last = {point.samples.id for point in explored.points if point.last and point.samples is not None}
    return [*found, *([GALLERY] if any(len(last & noise.indices.keys()) > 1 for noise in explored.noises) else [])]


def files(explored: Explored, page: doc.Document, out: Path) -> dict[str, bytes]:
    """The pages that `page.beside` names, and their pictures. out: the folder they are for."""
    names = [name for name, _ in page.beside]
    if not names:
        return {}
    told, found = explored.told(out, frozenset(doc.anchors(page.sections))), explored.files()
    back = ("index.html", "Results")
    if EXPLORE[0] in names:
        others = [back, *(other for other in page.beside if other[0] != EXPLORE[0])]
        palette = {name: theme.lines for name, theme in THEMES.items()}
        own = doc.Document(f"Explore: {page.title}", page.over, HOW, [], wide=True, beside=others)
        scripts = {"data": script_json(told | {"palette": palette}), "chart": script_json(chart()), "vega": bundle()}
        found[EXPLORE[0]] = own.html("explore.html.j2", **scripts).encode()
    if GALLERY[0] in names:
        others = [back, *(other for other in page.beside if other[0] != GALLERY[0])]
        found |= {GALLERY[0]: gallery.page(explored, told, page, others)}
    return found


def bundle() -> str:
    """The JavaScript of Vega, Vega-Lite and Vega-Embed as one function that sets window.vegaEmbed. About 3 s the first time."""
    import altair as alt
    import vl_convert

    version = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])  # the one that the chart is checked against
    source = vl_convert.javascript_bundle(vl_version=version)  # type: ignore[call-arg]  # its stub forgets a default
    return "(()=>{" + source.replace("</script", "<\\/script") + "\n})();"


def chart() -> dict[str, Any]:
    """The chart in Vega-Lite, over columns x, y, low, high and colour that the page fills from the chosen ones.

    Layers: Pareto front, intervals, points. Parameters: `brush`, a dragged rectangle; `chosen`, ids of the points that stand out.
    """
    import altair as alt

    chosen = alt.param("chosen", value=[])
    out_of_it = "length(chosen) > 0 && indexof(chosen, datum.id) < 0"
    points, front = alt.Chart(alt.NamedData("points")), alt.Chart(alt.NamedData("front"))
    x, y = alt.X("x", type="quantitative"), alt.Y("y", type="quantitative")
    faint, fainter = (
        alt.condition(out_of_it, alt.value(low), alt.value(high)) for low, high in ((0.15, 1), (0.08, 0.6))
    )
    colour = alt.Color("colour", type="nominal", scale=alt.Scale(), legend=alt.Legend(orient="bottom", columns=2))
    hollow = alt.condition("datum.other != ''", alt.value("transparent"), colour)
    brush = alt.selection_interval(name="brush", encodings=["x", "y"])
    tooltip = [alt.Tooltip(name, type="nominal", title=name) for name in ("cell", "x_said", "y_said", "other")]
    line = front.mark_line(strokeDash=[5, 4], strokeWidth=1.5, color="#888", clip=True).encode(x=x, y=y)
    bars = points.mark_rule(strokeWidth=1.5, clip=True).encode(
        x=x, y=alt.Y("low", type="quantitative"), y2="high", color=colour, opacity=fainter
    )
    dots = points.mark_point(size=110, strokeWidth=2, filled=False, cursor="pointer", clip=True).encode(
        x=x, y=y, color=colour, fill=hollow, opacity=faint, tooltip=tooltip
    )
    layers = alt.layer(line, bars, dots.add_params(brush)).add_params(chosen)
    declared: dict[str, Any] = layers.properties(width="container", height=420).to_dict()
    return declared
