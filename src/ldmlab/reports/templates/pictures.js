"use strict";
/* Pictures of a strip: PNG files in which a set's pictures stand beside each other. */
const data = JSON.parse(document.getElementById("data").textContent);
const by_id = id => document.getElementById(id);

/* An element with attributes, and texts or elements inside. */
function make(tag, attributes = {}, ...inside) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...inside);
  return element;
}

/* Picture k of a point's strip. */
function tile(point, k) {
  const keys = data.noises[point.noise].keys, said = `${point.cell} · ${keys[k]}`;
  const across = keys.length > 1 ? 100 * k / (keys.length - 1) : 0;
  const style = `background-image: url("${point.strip}"); background-size: ${100 * keys.length}% 100%; background-position: ${across}% 0`;
  return make("span", {role: "img", "aria-label": said, title: said, class: point.side <= 48 ? "still px" : "still", style});
}
