// Charts as SVG, drawn from JSON: {kind: "time" | "bars" | "heat" | "line", …}. See `chart` in macros.html.
const SVG = "http://www.w3.org/2000/svg";
const DRAWN = new Set(["svg", "g", "path", "rect", "line", "text", "circle", "title"]);

export function make(name, attributes = {}, ...children) {
  const node = DRAWN.has(name) ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 4 });
const two = new Intl.NumberFormat("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 });
const plain = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
export function show(value, unit) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "string") return value;
  if (unit === "usd") return (value < 0 ? "−$" : "$") + (Math.abs(value) < 100 ? two.format(Math.abs(value)) : compact.format(Math.abs(value)));
  if (unit === "share") return (100 * value).toFixed(1) + " %";
  if (unit === "seconds") return value < 10 ? value.toFixed(2) + " s" : compact.format(value) + " s";
  const text = Math.abs(value) < 1000 ? plain.format(value) : compact.format(value);
  return unit && unit !== "number" ? `${text} ${unit}` : text;
}

export function tip(event, text) {
  const box = document.getElementById("tip");
  box.hidden = text === null;
  if (text === null) return;
  box.textContent = text;
  box.style.left = Math.max(8, Math.min(event.clientX + 14, innerWidth - box.offsetWidth - 8)) + "px";
  box.style.top = Math.max(8, Math.min(event.clientY + 14, innerHeight - box.offsetHeight - 8)) + "px";
}

const stamp = new Intl.DateTimeFormat("sv-SE", { dateStyle: "short", timeStyle: "short" });
const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const day = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });
const STEPS = [300, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400, 172800, 604800, 1209600, 2592000];

function nice(high, count = 4) {
  const rough = high / count || 1, power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 2.5, 5, 10].map((by) => by * power).find((step) => step >= rough);
}
function colour(one, place) { return `var(--c-${one.colour || one.key || place})`; }
function legend(series) {
  return make("ul", { class: "legend" }, ...series.map((one, place) => {
    const key = make("span", { class: "key" });
    key.style.background = colour(one, place);
    return make("li", {}, key, one.name);
  }));
}

// {kind: "time", start, step (seconds), unit, series: [{name, key, values, stack, line}], now, total: {name, values}, band: {name, low, high}}
// Values beyond `now` are a forecast and are drawn fainter.
function time(spec, width, label) {
  const height = spec.height || 270, left = 48, right = 8, top = 8, bottom = 22;
  const count = Math.max(...spec.series.map((one) => one.values.length), spec.band ? spec.band.high.length : 0);
  const stacked = spec.series.filter((one) => !one.line), lines = spec.series.filter((one) => one.line);
  const sums = Array.from({ length: count }, (_, i) => stacked.reduce((sum, one) => sum + (one.values[i] || 0), 0));
  const most = Math.max(...sums, ...lines.flatMap((one) => one.values.map((value) => value || 0)), ...(spec.band ? spec.band.high.map((value) => value || 0) : []), 1e-9);
  const low = Math.min(0, ...lines.flatMap((one) => one.values.map((value) => value || 0)));
  const step = nice(most - low), high = Math.ceil(most / step) * step, floor = Math.floor(low / step) * step;
  const x = (i) => left + (width - left - right) * i / Math.max(count - (stacked.length ? 0 : 1), 1);
  const y = (value) => top + (height - top - bottom) * (1 - (value - floor) / (high - floor || 1));
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": label });
  for (let value = floor; value <= high + step / 9; value += step)
    svg.append(make("line", { class: "grid-line", x1: left, x2: width - right, y1: y(value), y2: y(value) }),
      make("text", { x: left - 7, y: y(value) + 4, "text-anchor": "end" }, show(value, spec.unit === "usd" || spec.unit === "share" ? spec.unit : "")));
  const span = count * spec.step, fits = Math.max(2, Math.floor((width - left) / 80));
  const gap = STEPS.find((one) => span / one <= fits) || Math.ceil(span / fits / 2592000) * 2592000;
  const offset = new Date(spec.start * 1000).getTimezoneOffset() * 60;
  for (let at = Math.ceil((spec.start - offset) / gap) * gap + offset; at < spec.start + span; at += gap) {
    const when = new Date(at * 1000), midnight = when.getHours() === 0 && when.getMinutes() === 0;
    svg.append(make("text", { x: x((at - spec.start) / spec.step), y: height - 5, "text-anchor": "middle" }, gap >= 86400 || midnight ? day.format(when) : clock.format(when)));
  }
  const below = new Array(count).fill(0);
  const bound = spec.now === undefined || spec.now === null ? count : Math.min(count, (spec.now - spec.start) / spec.step);
  stacked.forEach((one, place) => {
    const above = below.map((value, i) => value + (one.values[i] || 0));
    let path = "";
    for (let i = 0; i < count; i++) path += `${i ? "L" : "M"}${x(i).toFixed(1)} ${y(above[i]).toFixed(1)}L${x(i + 1).toFixed(1)} ${y(above[i]).toFixed(1)}`;
    for (let i = count - 1; i >= 0; i--) path += `L${x(i + 1).toFixed(1)} ${y(below[i]).toFixed(1)}L${x(i).toFixed(1)} ${y(below[i]).toFixed(1)}`;
    svg.append(make("path", { d: path + "Z", fill: colour(one, place) }));
    above.forEach((value, i) => { below[i] = value; });
  });
  if (spec.band) {
    let up = "", down = "";
    spec.band.high.forEach((value, i) => {
      if (value === null) return;
      up += `${up ? "L" : "M"}${x(i).toFixed(1)} ${y(value).toFixed(1)}`;
      down = `L${x(i).toFixed(1)} ${y(spec.band.low[i]).toFixed(1)}` + down;
    });
    svg.append(make("path", { d: up + down + "Z", fill: "var(--c-internal)", opacity: .3 }), make("path", { class: "line", d: up, stroke: "var(--c-internal)", "stroke-dasharray": "4 3" }));
  }
  if (bound < count) svg.append(make("line", { class: "cursor", x1: x(bound), x2: x(bound), y1: top, y2: height - bottom }), make("text", { x: x(bound) + (bound > count * .95 ? -4 : 4), y: top + 10, "text-anchor": bound > count * .95 ? "end" : "start" }, "now"));
  lines.forEach((one, place) => {
    let path = "", pen = "M";
    one.values.forEach((value, i) => { if (value === null) { pen = "M"; return; } path += `${pen}${x(i).toFixed(1)} ${y(value).toFixed(1)}`; pen = "L"; });
    svg.append(make("path", { class: "line", d: path, stroke: colour(one, place + stacked.length) }));
  });
  const cursor = make("line", { class: "cursor", y1: top, y2: height - bottom, visibility: "hidden" });
  const told = (i) => {
    const from = new Date((spec.start + i * spec.step) * 1000);
    const rows = spec.series.filter((one) => one.values[i] !== null && one.values[i] !== undefined && (one.line || one.values[i])).map((one) => `${one.name}: ${show(one.values[i], spec.unit)}`);
    if (spec.band && spec.band.high[i] !== null) rows.push(`${spec.band.name}: ${show(spec.band.low[i], spec.unit)} to ${show(spec.band.high[i], spec.unit)}`);
    return [stamp.format(from), ...rows.reverse()].join("\n");
  };
  follow(svg, width, (at) => Math.floor((at - left) / (width - left - right) * count), count, (event, i) => {
    cursor.setAttribute("visibility", i === null ? "hidden" : "visible");
    if (i !== null) { cursor.setAttribute("x1", x(i)); cursor.setAttribute("x2", x(i)); }
    tip(event, i === null ? null : told(i));
  });
  svg.append(cursor);
  const named = [...spec.series];
  if (spec.band) named.push({ name: spec.band.name, key: "internal" });
  return [svg, legend(named)];
}

// {kind: "bars", labels, unit, series: [{name, key, values}], href: [..]}
function bars(spec, width, label) {
  const height = spec.height || 230, left = 52, top = 8, bottom = 22, count = spec.labels.length;
  const sums = spec.labels.map((_, i) => spec.series.reduce((sum, one) => sum + Math.max(one.values[i] || 0, 0), 0));
  const step = nice(Math.max(...sums, 1e-9)), high = Math.ceil(Math.max(...sums, 1e-9) / step) * step;
  const wide = (width - left - 6) / Math.max(count, 1), y = (value) => top + (height - top - bottom) * (1 - value / high);
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": label });
  for (let value = 0; value <= high + step / 9; value += step)
    svg.append(make("line", { class: "grid-line", x1: left, x2: width - 6, y1: y(value), y2: y(value) }), make("text", { x: left - 7, y: y(value) + 4, "text-anchor": "end" }, show(value, spec.unit)));
  const every = Math.ceil(count / Math.max(1, Math.floor((width - left) / 70)));
  spec.labels.forEach((text, i) => {
    if (i % every === 0) svg.append(make("text", { x: left + wide * (i + .5), y: height - 5, "text-anchor": "middle" }, text));
    let below = 0;
    spec.series.forEach((one, place) => {
      const value = Math.max(one.values[i] || 0, 0);
      if (value) svg.append(make("rect", { x: left + wide * (i + .12), width: Math.max(wide * .76, 1), y: y(below + value), height: Math.max(y(below) - y(below + value), .5), rx: wide > 8 ? 2 : 0, fill: colour(one, place) }));
      below += value;
    });
  });
  follow(svg, width, (at) => Math.floor((at - left) / wide), count, (event, i) =>
    tip(event, i === null ? null : [spec.labels[i], ...spec.series.filter((one) => one.values[i]).map((one) => `${one.name}: ${show(one.values[i], spec.unit)}`)].join("\n")));
  return spec.series.length > 1 ? [svg, legend(spec.series)] : [svg];
}

// {kind: "lines", labels, unit, series: [{name, key, values}]}
function lines(spec, width, label) {
  const height = spec.height || 250, left = 64, right = 10, top = 8, bottom = 22, count = spec.labels.length;
  const all = spec.series.flatMap((one) => one.values.filter((value) => value !== null));
  const step = nice(Math.max(0, ...all) - Math.min(0, ...all)), high = Math.ceil(Math.max(0, ...all) / step) * step, low = Math.floor(Math.min(0, ...all) / step) * step;
  const x = (i) => left + (width - left - right) * i / Math.max(count - 1, 1), y = (value) => top + (height - top - bottom) * (1 - (value - low) / (high - low || 1));
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": label });
  for (let value = low; value <= high + step / 9; value += step)
    svg.append(make("line", { class: Math.abs(value) < step / 9 && low < 0 ? "cursor" : "grid-line", x1: left, x2: width - right, y1: y(value), y2: y(value) }), make("text", { x: left - 7, y: y(value) + 4, "text-anchor": "end" }, show(value, spec.unit)));
  const every = Math.ceil(count / Math.max(1, Math.floor((width - left) / 80)));
  spec.labels.forEach((text, i) => { if (i % every === 0) svg.append(make("text", { x: x(i), y: height - 5, "text-anchor": "middle" }, text)); });
  spec.series.forEach((one, place) => {
    let path = "", pen = "M";
    one.values.forEach((value, i) => { if (value === null) { pen = "M"; return; } path += `${pen}${x(i).toFixed(1)} ${y(value).toFixed(1)}`; pen = "L"; });
    svg.append(make("path", { class: "line", d: path, stroke: colour(one, place) }));
  });
  follow(svg, width, (at) => Math.round((at - left) / (width - left - right) * (count - 1)), count, (event, i) =>
    tip(event, i === null ? null : [spec.labels[i], ...spec.series.map((one) => `${one.name}: ${show(one.values[i], spec.unit)}`)].join("\n")));
  return [svg, legend(spec.series)];
}

// {kind: "heat", rows: [name], columns: [name], values: [[…]], unit, notes: [[…]]}
function heat(spec, width, label) {
  const left = spec.left || 90, cell = Math.max(4, (width - left) / spec.columns.length), row = spec.row || 24, bottom = 20;
  const known = spec.values.flat().filter((value) => value !== null), high = Math.max(...known, 1e-9);
  const height = spec.rows.length * row + bottom;
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": label });
  spec.rows.forEach((name, r) => {
    svg.append(make("text", { x: 0, y: r * row + row / 2 + 4 }, name));
    spec.values[r].forEach((value, c) => svg.append(make("rect", {
      x: left + c * cell, y: r * row, width: Math.max(cell - 1, 1), height: row - 2, rx: 2, fill: value === null ? "var(--rule)" : "var(--heat)", "fill-opacity": value === null ? .4 : .06 + .94 * value / high })));
  });
  const every = Math.ceil(spec.columns.length / Math.max(1, Math.floor((width - left) / 60)));
  spec.columns.forEach((name, c) => { if (c % every === 0) svg.append(make("text", { x: left + c * cell, y: height - 5 }, name)); });
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), scale = width / box.width;
    const c = Math.floor(((event.clientX - box.left) * scale - left) / cell), r = Math.floor((event.clientY - box.top) * scale / row);
    if (r < 0 || c < 0 || r >= spec.rows.length || c >= spec.columns.length) return tip(event, null);
    tip(event, `${spec.rows[r]}, ${spec.columns[c]}\n${show(spec.values[r][c], spec.unit)}${spec.notes ? "\n" + spec.notes[r][c] : ""}`);
  });
  svg.addEventListener("pointerleave", (event) => tip(event, null));
  return [svg];
}

// {kind: "nodes", groups: [{pool, block, nodes: [[name, gpus, leased]]}]}: a canvas, since a fleet has thousands.
function nodes(spec, width, label) {
  const total = spec.groups.reduce((sum, group) => sum + group.nodes.length, 0);
  const cell = total > 4000 ? 9 : total > 800 ? 13 : 20, gap = 16, head = 18, many = Math.max(1, Math.floor(width / cell));
  let top = 0;
  const places = spec.groups.map((group) => { const at = top; top += head + Math.ceil(group.nodes.length / many) * cell + gap; return at; });
  const canvas = make("canvas", { role: "img", "aria-label": label });
  const ratio = devicePixelRatio || 1, style = getComputedStyle(document.body), paint = canvas.getContext("2d");
  canvas.width = width * ratio; canvas.height = top * ratio;
  canvas.style.height = top + "px";
  paint.scale(ratio, ratio);
  const probe = document.body.appendChild(make("i", {}));
  const of = (name) => { probe.style.color = `var(${name})`; return getComputedStyle(probe).color; };
  const [ink, held, free, down] = ["--soft", "--c-on_demand", "--rule", "--c-down"].map(of);
  probe.remove();
  paint.font = "12px " + style.fontFamily;
  spec.groups.forEach((group, g) => {
    paint.fillStyle = ink;
    paint.fillText([group.pool, group.block, `${group.nodes.length} nodes`].filter(Boolean).join(" · "), 0, places[g] + 12);
    group.nodes.forEach(([, gpus, leased], i) => {
      const x = (i % many) * cell, y = places[g] + head + Math.floor(i / many) * cell;
      paint.fillStyle = gpus ? free : down;
      paint.fillRect(x, y, cell - 2, cell - 2);
      if (gpus && leased) { paint.globalAlpha = .25 + .75 * Math.min(1, leased / gpus); paint.fillStyle = held; paint.fillRect(x, y, cell - 2, cell - 2); paint.globalAlpha = 1; }
    });
  });
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
    const g = places.findLastIndex((at) => y >= at + head);
    const i = g < 0 ? -1 : Math.floor((y - places[g] - head) / cell) * many + Math.floor(x / cell);
    const node = g < 0 || x >= many * cell ? null : spec.groups[g].nodes[i];
    tip(event, node ? `${node[0]}\n${node[1] ? `${node[1]} GPUs, ${node[2]} leased` : "down"}` : null);
  });
  canvas.addEventListener("pointerleave", (event) => tip(event, null));
  return [canvas];
}

function follow(svg, width, at, count, told) {
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const i = at((event.clientX - box.left) * width / box.width);
    told(event, i < 0 || i >= count ? null : i);
  });
  svg.addEventListener("pointerleave", (event) => told(event, null));
}

const KINDS = { time, bars, lines, heat, nodes };
export function draw(figure) {
  const spec = JSON.parse(figure.querySelector("script").textContent);
  const box = figure.querySelector(".drawn");
  const width = Math.max(Math.round(box.clientWidth), 240);
  figure.dataset.width = width;
  box.replaceChildren(...KINDS[spec.kind](spec, width, figure.getAttribute("aria-label")));
}
export function drawAll(within) { for (const figure of within.querySelectorAll("[data-chart]")) draw(figure); }
addEventListener("themed", () => { for (const figure of document.querySelectorAll("[data-chart]")) if (figure.querySelector("canvas")) draw(figure); });
let resized = 0;
addEventListener("resize", () => {
  cancelAnimationFrame(resized);
  resized = requestAnimationFrame(() => {
    for (const figure of document.querySelectorAll("[data-chart]"))
      if (Math.abs(figure.querySelector(".drawn").clientWidth - figure.dataset.width) > 2) draw(figure);
  });
});
