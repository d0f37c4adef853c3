/* The chart of explore.html. State: the choices of the form, and `chosen`, the ids of points. All else follows from them. */
const points = data.points, columns = Object.fromEntries(data.columns.map(column => [column.key, column]));
const of_group = name => data.columns.filter(column => column.group === name);
const scores = of_group("scores").length ? of_group("scores") : of_group("first stage").filter(column => column.better);
const MOST = 24, COLUMNS = 8;  // rows and columns of pictures
const EVEN = ["first.f", "first.c", "cost.images", "cost.evaluations"];  // chosen, not measured: the axis has a tick at each
let chosen = new Set(), view = null, sorted = null, drawing = 0;

const value = (point, key) => { const v = point.values[key]; return v === undefined || typeof v === "string" ? v : v.value; };
const said = (point, key) => { const v = point.values[key]; return v === undefined ? "–" : typeof v === "string" ? v : v.text; };
const differs = (point, key) => { const v = point.values[key]; return v === undefined || typeof v === "string" ? "" : v.other; };
const images = point => choice("snapshots") === "last" || point.values["cost.images"] === undefined ? "" : ` after ${said(point, "cost.images")} images`;
const choice = name => by_id(name).value;
const colour_of = point => choice("colour") ? said(point, choice("colour")) : "";

function options(select, keys, begin) {
  for (const [group, members] of Object.entries(Object.groupBy ? Object.groupBy(keys, c => c.group) : grouped(keys)))
    select.append(make("optgroup", {label: group}, ...members.map(c => make("option", {value: c.key}, c.title))));
  select.value = begin;
}
function grouped(keys) {
  const found = {};
  for (const c of keys) (found[c.group] ??= []).push(c);
  return found;
}

/* Points of the chosen snapshots, and those of them that have both coordinates. */
const candidates = () => points.filter(p => p.last || choice("snapshots") === "all");
const shown = () => candidates().filter(p => value(p, choice("x")) !== undefined && value(p, choice("y")) !== undefined);

/* The points to which no other is at least as good in both and better in one; null where an axis has no better side. */
function front(rows) {
  const x = columns[choice("x")], y = columns[choice("y")];
  if (!x.better || !y.better || x.key === y.key) return null;
  const sign = column => column.better === "lower" ? 1 : -1;
  const at = p => [sign(x) * value(p, x.key), sign(y) * value(p, y.key)];
  const fair = rows.filter(p => !differs(p, x.key) && !differs(p, y.key));
  const beaten = p => fair.some(q => { const [a, b] = at(q), [c, d] = at(p); return a <= c && b <= d && (a < c || b < d); });
  return fair.filter(p => !beaten(p)).sort((p, q) => value(p, x.key) - value(q, x.key));
}

/* Whether an axis begins logarithmic: positive numbers over a factor 10. */
function wide(key) {
  const numbers = shown().map(p => value(p, key)).filter(v => typeof v === "number");
  return !columns[key].words && numbers.length > 0 && Math.min(...numbers) > 0 && Math.max(...numbers) / Math.min(...numbers) > 10;
}

function axis(encoding, name, rows, narrow) {
  const key = choice(name), column = columns[key], values = [...new Set(rows.map(p => value(p, key)))];
  const log = by_id(`log_${name}`).checked && !column.words && values.every(v => v > 0);
  encoding.type = column.words ? "nominal" : "quantitative";
  encoding.title = column.title + {lower: " (less is better)", higher: " (more is better)", "": ""}[column.better];
  encoding.scale = column.words ? {} : log ? {type: "log", nice: false, padding: 16} : {zero: false, padding: 16};
  encoding.axis = {grid: !column.words, labelAngle: 0, labelOverlap: true, tickCount: narrow ? 4 : 6, titleLimit: 400};
  if (column.words) Object.assign(encoding, {sort: values}, {axis: {labelLimit: narrow ? 60 : 140, labelAngle: narrow ? -40 : 0}});
  else if (values.length <= 8 && (column.group === "knobs" || EVEN.includes(key))) encoding.axis.values = values;
}

function theme() {
  const style = getComputedStyle(document.documentElement), of = name => style.getPropertyValue(name).trim();
  const text = {labelColor: of("--muted"), titleColor: of("--ink"), labelFontSize: 12, titleFontSize: 13, titleFontWeight: "normal"};
  return {
    background: "transparent", font: "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif", view: {stroke: null},
    axis: {...text, gridColor: of("--line"), domainColor: of("--muted"), ticks: false, labelPadding: 6},
    legend: {...text, symbolFillColor: "transparent", labelLimit: 260}, selection: {},
  };
}

async function draw() {
  const turn = ++drawing, rows = shown(), best = front(rows), narrow = by_id("chart").clientWidth < 480;
  const spec = JSON.parse(by_id("spec").textContent), [line, bars, dots] = spec.layer;
  for (const {encoding} of spec.layer) axis(encoding.x, "x", rows, narrow);
  axis(line.encoding.y, "y", rows, narrow); axis(dots.encoding.y, "y", rows, narrow); axis(bars.encoding.y, "y", rows, narrow);
  line.mark.interpolate = columns[choice("x")].better === "higher" ? "step-before" : "step-after";
  const kinds = [...new Set(rows.map(colour_of))], key = choice("colour");
  if (key && !columns[key].words) kinds.sort((a, b) => value(rows.find(p => colour_of(p) === a), key) - value(rows.find(p => colour_of(p) === b), key));
  const dark = matchMedia("(prefers-color-scheme: dark)").matches, palette = data.palette[dark ? "dark" : "light"];
  const scale = kinds.length <= palette.length ? {domain: kinds, range: palette.slice(0, kinds.length)}
    : {domain: kinds, scheme: key && !columns[key].words ? "viridis" : "tableau20"};
  const legend = key && kinds.length > 1 ? {title: columns[key].title, orient: "bottom", columns: narrow ? 2 : 4} : null;
  for (const encoding of [bars.encoding.color, dots.encoding.color, dots.encoding.fill]) Object.assign(encoding, {scale, legend});
  const [cell, x_said, y_said, other] = dots.encoding.tooltip;
  x_said.title = columns[choice("x")].title; y_said.title = columns[choice("y")].title; other.title = "another protocol";
  if (!rows.some(p => differs(p, choice("y")) || differs(p, choice("x")))) dots.encoding.tooltip.pop();
  const y = choice("y"), ends = p => { const v = p.values[y]; return typeof v === "string" ? [v, v] : [v.low ?? v.value, v.high ?? v.value]; };
  const logarithmic = dots.encoding.y.scale.type === "log";
  spec.datasets = {
    points: rows.map(p => ({
      id: p.id, cell: p.cell + images(p), x: value(p, choice("x")), y: value(p, y), colour: colour_of(p),
      low: logarithmic && ends(p)[0] <= 0 ? value(p, y) : ends(p)[0], high: ends(p)[1], x_said: said(p, choice("x")), y_said: said(p, y),
      other: differs(p, y) || differs(p, choice("x")),
    })),
    front: (best ?? []).map(p => ({x: value(p, choice("x")), y: value(p, y)})),
  };
  if (!best || !best.length) spec.layer.shift();
  const made = await vegaEmbed("#chart", spec, {renderer: "svg", actions: false, config: theme(), tooltip: {theme: dark ? "dark" : "light"}});
  if (turn !== drawing) return made.finalize();
  view = made.view;
  view.signal("chosen", [...chosen]);
  view.addSignalListener("brush", (_, brush) => brushed(brush));
  view.addEventListener("click", (_, item) => { if (item && item.datum && item.datum.id) choose([item.datum.id]); });
  by_id("front").textContent = best === null
    ? "No front: it needs two different axes that have a better side (scores and costs have one)."
    : `On the front: ${best.map(p => p.cell + images(p)).join("; ")}.`;
  await view.runAsync();
  list();
}

/* brush: {x: [low, high] or words, y: …}, empty when nothing is dragged. */
function brushed(brush) {
  const inside = (v, range) => range === undefined || (typeof v === "string" ? range.includes(v) : Math.min(...range) <= v && v <= Math.max(...range));
  const empty = !brush || !Object.keys(brush).length;
  choose(empty ? [] : shown().filter(p => inside(value(p, choice("x")), brush.x) && inside(value(p, choice("y")), brush.y)).map(p => p.id));
}

function choose(ids) {
  chosen = new Set(ids);
  if (view) view.signal("chosen", [...chosen]).runAsync();
  list();
}

/* The table and the pictures of what is chosen. The page does not become shorter: it would move under a hand that drags. */
function list() {
  document.body.style.minHeight = `${document.body.offsetHeight}px`;
  const every = shown(), rows = chosen.size ? every.filter(p => chosen.has(p.id)) : every;
  if (sorted) rows.sort((p, q) => {
    const a = value(p, sorted.key) ?? p.cell, b = value(q, sorted.key) ?? q.cell;
    return (a < b ? -1 : a > b ? 1 : 0) * sorted.sign;
  });
  const without = candidates().length - every.length, lacking = [choice("x"), choice("y")].filter(key => candidates().some(p => value(p, key) === undefined));
  by_id("count").textContent = (chosen.size ? `${rows.length} of ${every.length} chosen.` : `${every.length} points.`)
    + (without ? ` ${without} more without ${lacking.map(key => columns[key].title).join(" or ")}.` : "");
  by_id("clear").hidden = !chosen.size;
  const keys = [...new Set([choice("x"), choice("y"), ...scores.map(column => column.key)])];
  const head = (key, title) => {
    const button = make("button", {type: "button"}, title + (sorted && sorted.key === key ? (sorted.sign > 0 ? " ▴" : " ▾") : ""));
    button.onclick = () => { sorted = {key, sign: sorted && sorted.key === key ? -sorted.sign : 1}; list(); };
    return make("th", {scope: "col", class: key ? "n" : ""}, button);
  };
  const heads = make("tr", {}, head("", "cell"), ...keys.map(key => head(key, columns[key].title)));
  by_id("table").replaceChildren(make("thead", {}, heads), make("tbody", {}, ...rows.map(p => row(p, keys))));
  pictures(rows.filter(p => p.strip));
}

function row(point, keys) {
  const name = point.href ? make("a", {href: point.href}, point.cell) : point.cell;
  const cells = keys.map(key => {
    const [number, interval] = said(point, key).split(/ (?=\[)/), other = differs(point, key);
    const cell = make("td", {class: `n${other ? " differs" : ""}`}, make("span", {class: "value"}, (other ? "≠ " : "") + number));
    if (other) cell.title = other;
    if (interval) cell.append(make("span", {class: "interval"}, interval));
    return cell;
  });
  return make("tr", {"data-id": point.id}, make("th", {scope: "row"}, name, make("span", {class: "interval"}, images(point).trim())), ...cells);
}

function pictures(rows) {
  const blocks = [];
  data.noises.forEach((noise, n) => {
    const own = rows.filter(p => p.noise === n).slice(0, MOST), count = Math.min(COLUMNS, noise.keys.length);
    if (!own.length) return;
    const strips = own.map(p => make("div", {class: "strip", "data-id": p.id}, make("div", {class: "who"}, p.cell, make("span", {}, images(p).trim())),
      make("div", {class: "stills"}, ...Array.from({length: count}, (_, k) => tile(p, k)))));
    blocks.push(make("p", {class: "small"}, blocks.length ? "Other noise:" : "Each column is one noise."), ...strips);
  });
  if (rows.length > MOST) blocks.push(make("p", {class: "small"}, `${rows.length - MOST} more: choose fewer points to see them.`));
  by_id("samples").replaceChildren(...(blocks.length ? blocks : [make("p", {class: "small"}, "No pictures of these points are in the store.")]));
}

function changed(event) {
  document.body.style.minHeight = "";
  for (const name of ["x", "y"]) if (event.target.id === name) by_id(`log_${name}`).checked = wide(choice(name));
  draw();
}

for (const name of ["x", "y"]) options(by_id(name), data.columns, data.begin[name]);
by_id("colour").append(make("option", {value: ""}, "none"));
options(by_id("colour"), data.columns.filter(c => c.group === "knobs" || c.words || EVEN.includes(c.key)), data.begin.colour);
for (const name of ["x", "y"]) by_id(`log_${name}`).checked = wide(choice(name));
by_id("choices").onchange = changed;
by_id("clear").onclick = () => { chosen = new Set(); draw(); };
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
draw();
