"use strict";
/* What is being built and its curves. `told.watch` is asked for again every two seconds while the page is seen. */
const told = JSON.parse(document.getElementById("told").textContent);
const W = 340, H = 160, LEFT = 44, BOTTOM = 20, TOP = 8, RIGHT = 8;
const SVG = "http://www.w3.org/2000/svg";

function make(tag, attributes, ...inside) {
  const element = ["svg", "path", "text", "line", "circle"].includes(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...inside);
  return element;
}

const short = v => Math.abs(v) >= 1e6 ? `${+(v / 1e6).toPrecision(3)} M` : Math.abs(v) >= 1e4 ? `${+(v / 1e3).toPrecision(3)} k` : String(+v.toPrecision(3)).replace("-", "−");

/* One quantity over images: thin every value, thick the mean; dashed where both splits are there: validation. */
function chart(curve) {
  const every = curve.lines.flatMap(line => line.points), xs = every.map(p => p[0]), ys = every.map(p => p[1]);
  let low = Math.min(...ys), high = Math.max(...ys);
  const log = low > 0 && high / low > 30, of = log ? Math.log : v => v, end = Math.max(...xs, 1);
  if (low === high) { low -= Math.abs(low) / 20 || 1; high += Math.abs(high) / 20 || 1; }
  const x = v => LEFT + (W - LEFT - RIGHT) * v / end, y = v => TOP + (H - TOP - BOTTOM) * (of(high) - of(v)) / (of(high) - of(low));
  const path = points => points.map((p, i) => `${i ? "L" : "M"}${x(p[0]).toFixed(1)} ${y(p[1]).toFixed(1)}`).join("");
  const svg = make("svg", {viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `${curve.name} over images`});
  const middle = log ? Math.sqrt(low * high) : (low + high) / 2;
  for (const v of [low, middle, high]) svg.append(
    make("line", {class: "rule", x1: LEFT, x2: W - RIGHT, y1: y(v), y2: y(v)}), make("text", {x: LEFT - 6, y: y(v) + 4, "text-anchor": "end"}, short(v)));
  svg.append(make("text", {x: LEFT, y: H - 4}, "0"), make("text", {x: W - RIGHT, y: H - 4, "text-anchor": "end"}, `${short(end)} images`));
  for (const line of curve.lines) {
    const kind = line.split === "val" && curve.lines.length > 1 ? "val" : "", last = line.mean[line.mean.length - 1];
    svg.append(make("path", {class: `thin ${kind}`, d: path(line.points)}), make("path", {class: kind, d: path(line.mean)}),
      make("circle", {class: kind, cx: x(last[0]), cy: y(last[1]), r: 2.5}));
  }
  const now = curve.lines.map(line => `${line.split} ${short(line.mean[line.mean.length - 1][1])}`).join(" · ");
  return make("div", {}, make("h3", {}, `${curve.name} `, make("span", {class: "now"}, now + (log ? " (logarithmic)" : ""))), svg);
}

function building(stage) {
  const head = make("h2", {}, make("a", {href: stage.href}, `${stage.title} `, make("span", {class: "muted"}, stage.name)));
  const said = [stage.images === null ? "" : `${stage.images.toLocaleString("en").replaceAll(",", "\u202f")}${stage.target ? ` of ${stage.target.toLocaleString("en").replaceAll(",", "\u202f")}` : ""} images`,
    stage.holder, told.watch ? `last sign ${stage.sign} ago` : ""];
  const block = make("div", {class: "building", "data-stage": stage.name}, head);
  if (told.watch && stage.target) block.append(make("progress", {max: stage.target, value: stage.images ?? 0}), " ");
  block.append(make("p", {class: "small"}, said.filter(Boolean).join(" · ")), make("div", {class: "charts"}, ...stage.curves.map(chart)));
  return block;
}

function show(stages) {
  const title = make("p", {class: "muted"}, stages.length ? "Running now" : "Nothing is running now.");
  document.getElementById("live").replaceChildren(...(told.watch === "/live.json" ? [title] : []), ...stages.map(building));
}

async function watch() {
  if (!document.hidden) try {
    const answer = await fetch(told.watch);
    if (answer.ok) show((await answer.json()).stages);
  } catch { /* the site was closed, or is busy: ask again */ }
  setTimeout(watch, 2000);
}

if (told.stages) show(told.stages);
if (told.watch) watch();
