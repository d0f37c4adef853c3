/* The gallery: a column a cell, a row a noise. With sliders a column shows its cell that lies nearest to them, and says where. */
const points = Object.fromEntries(data.points.map(point => [point.id, point]));
const names = [...new Set(data.drawn.map(cell => cell.column))];
const places = data.sliders.map(slider => slider.places.length - 1);

function nearest(column) {
  const far = cell => Math.hypot(...cell.at.map((at, n) => at === null ? 0 : data.sliders[n].places.indexOf(at) - places[n]));
  return data.drawn.filter(cell => cell.column === column).reduce((best, cell) => far(cell) < far(best) ? cell : best);
}

function draw() {
  const cells = names.map(nearest), used = [...new Set(cells.map(cell => points[cell.point].noise))];
  const heads = cells.map(cell => {
    const exact = cell.at.every((at, n) => at === null || at === data.sliders[n].places[places[n]]), point = points[cell.point];
    const said = cell.at.flatMap((at, n) => at === null ? [] : [`${data.sliders[n].title} ${at}`]);
    const where = make("span", {class: exact ? "interval" : "interval away"}, said.join(", "));
    const name = point.href ? make("a", {href: point.href}, cell.column || point.cell) : cell.column || point.cell;
    return make("th", {scope: "col", "data-id": point.id}, name, where, make("span", {class: "interval"}, point.score));
  });
  const body = used.flatMap(n => data.noises[n].keys.map((key, k) => make("tr", {}, make("th", {scope: "row", title: key}, data.noises[n].names[k]),
    ...cells.map(cell => make("td", {}, points[cell.point].noise === n ? tile(points[cell.point], k) : "")))));
  by_id("gallery").replaceChildren(make("thead", {}, make("tr", {}, make("th", {scope: "col"}, "noise"), ...heads)), make("tbody", {}, ...body));
}

data.sliders.forEach((slider, n) => {
  const last = slider.places.length - 1, shown = make("output", {}, String(slider.places[last]));
  const input = make("input", {type: "range", min: 0, max: last, step: 1, value: last, id: `slider-${slider.knob}`});
  input.oninput = () => { places[n] = Number(input.value); shown.textContent = slider.places[places[n]]; draw(); };
  by_id("sliders").append(make("label", {class: "slide"}, `${slider.title} `, shown, input));
});
draw();
