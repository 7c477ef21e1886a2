"use strict";
const DATA = JSON.parse(document.getElementById("data").textContent);
const COLOURS = ["#3b6fd4", "#d9822b", "#2f9e6b", "#9556c4", "#c9405f", "#3aa3b8", "#a8a8a8", "#6b5d4d"];
const SVG = "http://www.w3.org/2000/svg";

function make(name, attributes = {}, ...children) {
  const svg = ["svg", "g", "path", "rect", "line", "text"].includes(name);
  const node = svg ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined) node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 4 });
const two = new Intl.NumberFormat("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 });
const plain = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
function show(value, unit) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "string") return value;
  if (unit === "usd") return (value < 0 ? "−$" : "$") + compact.format(Math.abs(value));
  if (unit === "usd2") return "$" + two.format(value);
  if (unit === "share") return (100 * value).toFixed(1) + " %";
  if (unit === "hours") return compact.format(value) + " h";
  return Math.abs(value) < 100 ? plain.format(value) : compact.format(value);
}

function tip(event, text) {
  const box = document.getElementById("tip");
  box.hidden = text === null;
  if (text === null) return;
  box.textContent = text;
  box.style.left = Math.min(event.clientX + 14, innerWidth - box.offsetWidth - 8) + "px";
  box.style.top = Math.min(event.clientY + 14, innerHeight - box.offsetHeight - 8) + "px";
}

function figures(items) {
  return make("div", { class: "figures" }, ...items.map(([name, value, unit]) =>
    make("div", { class: "figure" }, make("b", {}, show(value, unit)), make("span", {}, name))));
}

function table(spec) {
  const total = spec.rows.length > 1 && spec.rows.at(-1)[0] === "total";
  const body = make("tbody");
  let sorted = null;
  const fill = (rows) => body.replaceChildren(...rows.map((row) => make("tr", {}, ...row.map((value, i) =>
    make("td", { class: spec.columns[i][1] === "text" ? null : "n" }, show(value, spec.columns[i][1]))))));
  const heads = spec.columns.map(([title, unit], i) => make("th", {
    class: unit === "text" ? null : "n", scope: "col", tabindex: 0,
    onclick: () => sort(i), onkeydown: (event) => { if (event.key === "Enter") sort(i); },
  }, title));
  function sort(i) {
    const down = sorted === i;
    sorted = down ? null : i;
    heads.forEach((head, at) => at === i ? head.setAttribute("aria-sort", down ? "descending" : "ascending") : head.removeAttribute("aria-sort"));
    const rows = total ? spec.rows.slice(0, -1) : [...spec.rows];
    rows.sort((a, b) => (a[i] === null) - (b[i] === null) || (a[i] > b[i] ? 1 : a[i] < b[i] ? -1 : 0));
    if (down) rows.reverse();
    fill(total ? [...rows, spec.rows.at(-1)] : rows);
  }
  fill(spec.rows);
  return make("div", { class: "scroll" }, make("table", { class: total ? "sheet" : "sheet even" },
    make("thead", {}, make("tr", {}, ...heads)), body));
}

function chart(spec) {
  const [width, height, left, bottom] = [1000, 300, 74, 24];
  const series = spec.series.filter((one) => one.values.some((value) => value));
  const stacked = spec.kind === "stack";
  const sums = spec.labels.map((_, i) => series.reduce((sum, one) => sum + (one.values[i] || 0), 0));
  const all = stacked ? sums : series.flatMap((one) => one.values.filter((value) => value !== null));
  const low = Math.min(0, ...all), high = Math.max(0, ...all) || 1;
  const y = (value) => 8 + (height - bottom - 8) * (1 - (value - low) / (high - low || 1));
  const count = spec.labels.length;
  const step = (width - left - 10) / (stacked ? count : Math.max(count - 1, 1));
  const x = (i) => left + step * i;
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
  for (let i = 0; i <= 4; i++) {
    const value = low + (high - low) * i / 4;
    svg.append(make("line", { class: "grid", x1: left, x2: width - 10, y1: y(value), y2: y(value) }),
      make("text", { x: left - 8, y: y(value) + 4, "text-anchor": "end" }, show(value, spec.unit)));
  }
  if (low < 0) svg.append(make("line", { class: "zero", x1: left, x2: width - 10, y1: y(0), y2: y(0) }));
  const every = Math.ceil(count / 10);
  spec.labels.forEach((label, i) => {
    if (i % every === 0) svg.append(make("text", { x: x(i) + (stacked ? step / 2 : 0), y: height - 4, "text-anchor": "middle" }, label));
  });
  series.forEach((one, place) => {
    const colour = COLOURS[spec.series.indexOf(one) % COLOURS.length];
    if (stacked) {
      one.values.forEach((value, i) => {
        const below = series.slice(0, place).reduce((sum, other) => sum + (other.values[i] || 0), 0);
        svg.append(make("rect", { x: x(i) + step * 0.15, width: step * 0.7, y: y(below + value), height: Math.max(y(below) - y(below + value), 0), fill: colour }));
      });
    } else {
      const path = one.values.map((value, i) => value === null ? "" : (i ? "L" : "M") + x(i) + " " + y(value)).join("");
      svg.append(make("path", { class: "line", d: path, stroke: colour }));
    }
  });
  svg.append(make("rect", {
    x: left, y: 0, width: width - left - 10, height: height - bottom, fill: "transparent",
    onmousemove: (event) => {
      const box = svg.getBoundingClientRect();
      const at = ((event.clientX - box.left) * width / box.width - left) / step;
      const i = Math.max(0, Math.min(count - 1, stacked ? Math.floor(at) : Math.round(at)));
      tip(event, [spec.labels[i], ...series.map((one) => one.name + ": " + show(one.values[i], spec.unit))].join("\n"));
    },
    onmouseleave: (event) => tip(event, null),
  }));
  const legend = make("p", { class: "legend" });
  for (const one of series) {
    const key = make("span", { class: "key" });
    key.style.background = COLOURS[spec.series.indexOf(one) % COLOURS.length];
    legend.append(key, one.name + " ");
  }
  return make("div", { class: "chart" }, svg, legend);
}

document.title = DATA.title;
document.getElementById("title").textContent = DATA.title;
document.getElementById("lead").textContent = DATA.lead;
for (const part of DATA.parts) {
  const card = make("section", { class: "card" }, make("h2", {}, part.heading));
  if (part.lead) card.append(make("p", { class: "lead" }, part.lead));
  if (part.figures) card.append(figures(part.figures));
  if (part.chart) card.append(chart(part.chart));
  if (part.table) card.append(table(part.table));
  document.getElementById("parts").append(card);
}
const dark = matchMedia("(prefers-color-scheme: dark)");
let theme = "auto";
function paint() { document.documentElement.dataset.theme = theme === "auto" ? (dark.matches ? "dark" : "light") : theme; }
document.getElementById("theme").addEventListener("click", () => {
  theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  paint();
});
dark.addEventListener("change", paint);
addEventListener("beforeprint", () => { document.documentElement.dataset.theme = "light"; });
addEventListener("afterprint", paint);
paint();
