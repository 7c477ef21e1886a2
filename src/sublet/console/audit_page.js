"use strict";
const DATA = JSON.parse(document.getElementById("data").textContent);
const AUDIT = DATA.audit;
const KINDS = ["24h", "4h", "1h", "interruptible"];
const NAMES = { "24h": "firm for 24 hours", "4h": "firm for 4 hours", "1h": "firm for 1 hour", interruptible: "interruptible" };
const COLOURS = { "24h": "var(--firm24)", "4h": "var(--firm4)", "1h": "var(--firm1)", interruptible: "var(--loose)" };
const MOST_QUOTAS = 25;
const state = { pool: null, zoom: null, prices: { ...AUDIT.prices_usd_per_gpu_hour }, sold: 100 };
for (const kind of KINDS) state.prices[kind] = Number(state.prices[kind]);

// ── small helpers ────────────────────────────────────────────────────────────────────────

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

function make(name, attributes = {}, ...children) {
  const svg = ["svg", "g", "path", "rect", "line", "text", "title"].includes(name);
  const node = svg ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
const millions = new Intl.NumberFormat("en", { notation: "compact", minimumSignificantDigits: 3, maximumSignificantDigits: 3 });
const count = (value) => (value === null ? "–" : whole.format(value));
const gpus = (value) => (value === null ? "–" : value < 10 ? String(Math.round(value * 10) / 10) : whole.format(value));
const share = (value) => (value === null || !isFinite(value) ? "–" : (100 * value).toFixed(1) + " %");
const usd = (value) => (value >= 1e6 ? "$" + millions.format(value) : "$" + whole.format(value));
const stamp = (seconds) => new Date(seconds * 1000).toISOString().slice(0, 16).replace("T", " ");

function length(seconds) {
  if (seconds >= 3 * 86400) return seconds / 86400 + " days";
  if (seconds >= 3600) return seconds / 3600 + (seconds === 3600 ? " hour" : " hours");
  return seconds / 60 + " minutes";
}

function rangeName(run) {
  if (run.below_s === null) return "over " + length(run.at_least_s);
  if (run.at_least_s === 0) return "under " + length(run.below_s);
  const [low, high] = [length(run.at_least_s), length(run.below_s)];
  const unit = high.split(" ")[1];
  return (low.split(" ")[1].startsWith(unit.slice(0, 4)) ? low.split(" ")[0] : low) + " to " + high;
}

function tip(event, text) {
  const box = $("tip");
  box.hidden = text === null;
  if (text === null) return;
  box.textContent = text;
  const [x, y] = [event.clientX, event.clientY];
  const left = x + 16 + box.offsetWidth > innerWidth ? x - box.offsetWidth - 12 : x + 14;
  box.style.left = Math.max(4, left) + "px";
  box.style.top = Math.max(4, Math.min(y + 14, innerHeight - box.offsetHeight - 4)) + "px";
}

function told(node, text) {
  node.addEventListener("pointermove", (event) => tip(event, text));
  node.addEventListener("pointerleave", (event) => tip(event, null));
  return node;
}

function niceTop(most) {
  const power = 10 ** Math.floor(Math.log10(most || 1));
  return [1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10].map((n) => n * power).find((n) => n >= most) || most;
}

// ── what is looked at ────────────────────────────────────────────────────────────────────

const view = () => (state.pool === null ? AUDIT.total : AUDIT.pools.find((pool) => pool.name === state.pool));
const seriesNow = () => (state.pool === null ? DATA.series.total : DATA.series.pools[state.pool]);
const mixesNow = () => (state.pool === null ? DATA.mixes.total : DATA.mixes.pools[state.pool]);

function seconds() {
  const from = state.pool === null ? AUDIT : view();
  return (Date.parse(from.to) - Date.parse(from.from)) / 1000;
}

/** GPU-hours by kind, sold the dearest way at the prices now: a length that pays no more than
 *  something shorter is not sold. The GPU-hours of every choice of lengths came with the page. */
function mixNow() {
  const lengths = ["24h", "4h", "1h"];
  const chosen = lengths.filter((name, i) =>
    [...lengths.slice(i + 1), "interruptible"].every((other) => state.prices[name] > state.prices[other]));
  const hours = mixesNow()[chosen.join(" ")];
  return KINDS.map((kind) => ({ kind, hours: hours[kind] || 0, worth: (hours[kind] || 0) * state.prices[kind] }));
}

const worthNow = () => mixNow().reduce((sum, part) => sum + part.worth, 0);

// ── drawing ──────────────────────────────────────────────────────────────────────────────

function figures() {
  const now = view();
  const long = now.idle_runs.find((run) => run.at_least_s === 86400).share_at_least;
  const beside = now.idle_gpu_hours ? now.idle_beside_waiting_gpu_hours / now.idle_gpu_hours : 0;
  const hours = seconds() / 3600;
  const items = [
    [share(now.idle_share), "of all GPU-hours sat idle", `${count(now.idle_gpu_hours)} of ${count(now.gpu_hours)} GPU-hours`],
    [gpus(now.idle_gpu_hours / hours), "GPUs idle on average", beside > 0.005 ? `${share(beside)} of it while jobs waited for as many` : "at any time of the period"],
    [share(long), "idle for a day or more", "of the idle GPU-hours, without a break"],
    [usd(worthNow()), "worth at most", `at the prices below, in ${whole.format(hours / 24)} days`],
  ];
  $("figures").replaceChildren(...items.map(([value, name, more]) =>
    make("div", { class: "figure" }, make("b", {}, value), make("span", { class: "name" }, name), make("span", {}, more))));
}

function timeChart() {
  const box = $("time");
  const data = seriesNow();
  const width = Math.max(box.clientWidth, 280), height = width < 520 ? 220 : 300;
  const left = 48, right = 8, top = 8, bottom = 26;
  const n = data.total.length;
  const [first, last] = state.zoom || [0, n];
  const most = niceTop(Math.max(...data.total.slice(first, last).map((v) => v || 0), 1));
  const x = (i) => left + ((i - first) / (last - first)) * (width - left - right);
  const y = (v) => top + (1 - Math.min(v, most) / most) * (height - top - bottom);
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": "GPUs in use and idle over time" });
  for (let k = 0; k <= 4; k++) {
    const value = (most * k) / 4;
    svg.append(make("line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }));
    svg.append(make("text", { x: left - 8, y: y(value) + 4, "text-anchor": "end" }, short.format(value)));
  }
  const area = (low, high) => {
    let path = "";
    for (let i = first; i < last; i++) {
      if (data.total[i] === null) continue;
      let j = i;
      while (j < last && data.total[j] !== null) j++;
      let up = `M${x(i).toFixed(1)},${y(low(i)).toFixed(1)}`, down = "";
      for (let k = i; k < j; k++) up += `V${y(high(k)).toFixed(1)}H${x(k + 1).toFixed(1)}`;
      for (let k = j - 1; k >= i; k--) down += `V${y(low(k)).toFixed(1)}H${x(k).toFixed(1)}`;
      path += up + down + "Z";
      i = j;
    }
    return path;
  };
  svg.append(make("path", { d: area((i) => data.running[i], (i) => data.total[i]), fill: "var(--idle)" }));
  svg.append(make("path", { d: area(() => 0, (i) => data.running[i]), fill: "var(--used)" }));
  if (data.pending.some((value) => value > 0)) {
    let line = "";
    for (let i = first; i < last; i++) {
      if (data.pending[i] === null) continue;
      line += `${line && data.pending[i - 1] !== null ? "L" : "M"}${((x(i) + x(i + 1)) / 2).toFixed(1)},${y(data.pending[i]).toFixed(1)}`;
    }
    svg.append(make("path", { d: line, fill: "none", stroke: "var(--wait)", "stroke-width": 1.5, "stroke-linejoin": "round" }));
  }
  const ticks = Math.max(2, Math.floor((width - left) / 120));
  const near = (last - first) * data.step_s < 4 * 86400;
  for (let k = 0; k <= ticks; k++) {
    const i = first + ((last - first) * k) / ticks;
    const text = stamp(data.start + i * data.step_s);
    svg.append(make("text", { x: x(i), y: height - 6, "text-anchor": k === 0 ? "start" : k === ticks ? "end" : "middle" },
      near ? text.slice(5) : text.slice(0, 10)));
  }
  const cursor = make("line", { y1: top, y2: height - bottom, stroke: "var(--ink)", "stroke-width": 1, visibility: "hidden" });
  const band = make("rect", { y: top, height: height - top - bottom, fill: "var(--focus)", opacity: 0.2, visibility: "hidden" });
  svg.append(cursor, band);
  const at = (event) => {
    const place = ((event.clientX - svg.getBoundingClientRect().left) / svg.getBoundingClientRect().width) * width;
    return Math.max(first, Math.min(last - 1, Math.floor(first + ((place - left) / (width - left - right)) * (last - first))));
  };
  let from = null;
  svg.addEventListener("pointerdown", (event) => { from = at(event); svg.setPointerCapture(event.pointerId); });
  svg.addEventListener("pointermove", (event) => {
    const i = at(event);
    cursor.setAttribute("visibility", "visible");
    cursor.setAttribute("x1", x(i + 0.5)); cursor.setAttribute("x2", x(i + 0.5));
    if (from !== null && from !== i) {
      band.setAttribute("visibility", "visible");
      band.setAttribute("x", x(Math.min(from, i))); band.setAttribute("width", x(Math.max(from, i) + 1) - x(Math.min(from, i)));
    }
    const when = `${stamp(data.start + i * data.step_s)} UTC, ${length(data.step_s)}`;
    tip(event, data.total[i] === null ? `${when}\nnothing is known` : [
      when, `${gpus(data.running[i])} in use of ${gpus(data.total[i])}`,
      `${gpus(data.total[i] - data.running[i])} idle on average, ${gpus(data.least_idle[i])} all the time`,
      data.pending[i] ? `${gpus(data.pending[i])} waited for` : null].filter(Boolean).join("\n"));
  });
  svg.addEventListener("pointerup", (event) => {
    const i = at(event);
    if (from !== null && Math.abs(i - from) >= 2) { state.zoom = [Math.min(from, i), Math.max(from, i) + 1]; tip(event, null); timeChart(); }
    from = null;
    band.setAttribute("visibility", "hidden");
  });
  svg.addEventListener("pointerleave", (event) => { cursor.setAttribute("visibility", "hidden"); tip(event, null); });
  svg.addEventListener("dblclick", () => { state.zoom = null; timeChart(); });
  box.replaceChildren(svg);
  $("whole").hidden = state.zoom === null;
  $("waiting").hidden = !data.pending.some((value) => value > 0);
  $("time-lead").textContent = `GPUs, as means over ${length(data.step_s)}.`;
}

function runsChart() {
  const box = $("runs");
  const runs = view().idle_runs;
  const width = Math.max(box.clientWidth, 260), row = 27, name = 132, figure = 58;
  const largest = Math.max(...runs.map((run) => run.share || 0), 1e-9);
  const svg = make("svg", { viewBox: `0 0 ${width} ${runs.length * row}`, height: runs.length * row, role: "img", "aria-label": "Idle GPU-hours by length of run" });
  runs.forEach((run, i) => {
    const long = ((run.share || 0) / largest) * (width - name - figure);
    const g = make("g", {},
      make("rect", { x: 0, y: i * row, width, height: row, fill: "transparent" }),
      make("text", { class: "on", x: name - 10, y: i * row + 17, "text-anchor": "end" }, rangeName(run)),
      make("rect", { x: name, y: i * row + 5, width: Math.max(long, 1), height: row - 10, rx: 3, fill: "var(--idle)" }),
      make("text", { class: "on", x: name + long + 8, y: i * row + 17 }, share(run.share)));
    svg.append(told(g, `${rangeName(run)}\n${count(run.gpu_hours)} GPU-hours in ${count(run.runs)} runs\n${share(run.share_at_least)} of the idle hours in runs this long or longer`));
  });
  box.replaceChildren(svg);
}

function weekChart() {
  const box = $("week");
  const values = view().idle_by_hour_of_week;
  const width = Math.max(box.clientWidth, 260), left = 34, bottom = 20, row = 31;
  const cell = (width - left) / 24;
  const known = values.filter((value) => value !== null);
  const [low, high] = [Math.min(...known), Math.max(...known)];
  const svg = make("svg", { viewBox: `0 0 ${width} ${7 * row + bottom}`, height: 7 * row + bottom, role: "img", "aria-label": "Mean idle GPUs by hour of the week" });
  ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"].forEach((day, d) => {
    svg.append(make("text", { class: "on", x: 0, y: d * row + row / 2 + 4 }, day));
    for (let h = 0; h < 24; h++) {
      const value = values[24 * d + h];
      const strength = value === null ? 0 : high > low ? 0.12 + (0.88 * (value - low)) / (high - low) : 0.5;
      const rect = make("rect", { x: left + h * cell, y: d * row, width: cell - 1, height: row - 2, rx: 2, fill: `rgba(var(--heat), ${strength.toFixed(3)})` });
      svg.append(told(rect, `${day} ${String(h).padStart(2, "0")}:00 UTC\n${value === null ? "nothing is known" : gpus(value) + " GPUs idle on average"}`));
    }
  });
  for (const h of [0, 6, 12, 18]) svg.append(make("text", { x: left + h * cell, y: 7 * row + 14 }, `${h}:00`));
  $("week-lead").textContent = `Mean idle GPUs at each hour of the week, UTC: from ${gpus(low)} (faint) to ${gpus(high)} (strong).`;
  box.replaceChildren(svg);
}

function mixChart() {
  const parts = mixNow();
  const all = parts.reduce((sum, part) => sum + part.hours, 0) || 1;
  const box = $("mix");
  const width = Math.max(box.clientWidth, 260);
  const svg = make("svg", { viewBox: `0 0 ${width} 34`, height: 34, role: "img", "aria-label": "Idle GPU-hours by what they could have been sold as" });
  let x = 0;
  for (const part of parts) {
    const long = (part.hours / all) * width;
    if (long <= 0) continue;
    svg.append(told(make("rect", { x, y: 2, width: Math.max(long - 1, 0.5), height: 30, fill: COLOURS[part.kind], rx: 2 }),
      `${NAMES[part.kind]}\n${count(part.hours)} GPU-hours, ${share(part.hours / all)}\n${usd(part.worth)}`));
    x += long;
  }
  box.replaceChildren(svg);
  for (const part of parts) {
    const row = $("prices").querySelector(`[data-kind="${part.kind}"]`);
    row.querySelector(".hours").textContent = count(part.hours);
    row.querySelector(".share").textContent = share(part.hours / all);
    row.querySelector(".usd").textContent = usd(part.worth);
  }
  const worth = worthNow(), days = seconds() / 86400;
  const sold = worth * (state.sold / 100);
  $("worth").replaceChildren(
    make("b", {}, usd(sold)), ` in ${whole.format(days)} days, or ${usd((sold / days) * 365)} in a year like this`,
    make("span", { class: "rest" }, state.sold === 100
      ? "if every idle GPU-hour finds a buyer and every window was known to stay idle: the most that can be had"
      : `if ${state.sold} % of it is sold; all of it would be ${usd(worth)}`));
}

function replayChart() {
  const found = view().replay;
  $("replay-card").hidden = !found;
  if (!found) return;
  $("replay-lead").textContent = `The policy “${AUDIT.policy}” decides at each boundary of the windows from what was known one step before it, `
    + `with a notice of ten minutes: ${found.from.slice(0, 10)} to ${found.to.slice(0, 10)}, after a week to learn from. `
    + "At the prices that the audit was run with.";
  const parts = [
    ["firm, and kept", found.firm_gpu_hours, "var(--firm24)"], ["firm, and broken", found.broken_gpu_hours, "var(--wait)"],
    ["interruptible", found.interruptible_gpu_hours, "var(--loose)"],
    ["not sold", Math.max(found.idle_gpu_hours - found.firm_gpu_hours - found.interruptible_gpu_hours, 0), "var(--unsold)"],
  ];
  const all = parts.reduce((sum, part) => sum + part[1], 0) || 1;
  const idle = found.idle_gpu_hours || 1;
  const box = $("replay"), width = Math.max(box.clientWidth, 260);
  const svg = make("svg", { viewBox: `0 0 ${width} 34`, height: 34, role: "img", "aria-label": "Idle GPU-hours by what the policy would have sold them as" });
  let x = 0;
  for (const [name, hours, colour] of parts) {
    const long = (hours / all) * width;
    if (long > 0) svg.append(told(make("rect", { x, y: 2, width: Math.max(long - 1, 0.5), height: 30, fill: colour, rx: 2 }),
      `${name}\n${count(hours)} GPU-hours, ${share(hours / idle)} of idle`));
    x += long;
  }
  const legend = make("p", { class: "legend" });
  for (const [name, hours, colour] of parts) legend.append(make("span", { class: "key", style: `background:${colour}` }), `${name} ${share(hours / idle)} `);
  box.replaceChildren(svg, legend);
  $("replay-worth").replaceChildren(make("b", {}, usd(Number(found.worth_usd))),
    ` net of refunds and credits, ${share(found.worth_share)} of what hindsight would have had in that time`,
    make("span", { class: "rest" }, `${count(found.evictions)} GPUs were taken back; internal jobs waited ${count(found.late_gpu_hours)} GPU-hours beyond the notice. Shares are of the idle GPU-hours; what was broken was not idle after all, and was refunded and credited.`));
}

function pricesTable() {
  const rows = KINDS.map((kind) => {
    const input = make("input", {
      class: "price", type: "number", min: 0, step: 0.05, value: state.prices[kind].toFixed(2), "aria-label": `USD per GPU-hour, ${NAMES[kind]}`,
      oninput: (event) => { state.prices[kind] = Math.max(Number(event.target.value) || 0, 0); mixChart(); figures(); poolsTable(); },
    });
    return make("tr", { "data-kind": kind },
      make("td", {}, make("span", { class: "swatch", style: `background:${COLOURS[kind]}` }), NAMES[kind]),
      make("td", { class: "n hours" }), make("td", { class: "n share" }), make("td", { class: "n" }, input), make("td", { class: "n usd" }));
  });
  const slider = make("input", {
    type: "range", min: 0, max: 100, step: 5, value: state.sold, "aria-label": "How much of it is sold, in per cent",
    oninput: (event) => { state.sold = Number(event.target.value); label.textContent = state.sold + " %"; mixChart(); },
  });
  const label = make("span", {}, state.sold + " %");
  $("prices").replaceChildren(
    make("thead", {}, make("tr", {}, make("th", {}, "sold as"), make("th", { class: "n" }, "GPU-hours"),
      make("th", { class: "n share" }, "of idle"), make("th", { class: "n" }, "USD per GPU-hour"), make("th", { class: "n" }, "worth"))),
    make("tbody", {}, ...rows, make("tr", {}, make("td", {}, "of which sold"), make("td", { class: "n", colspan: 3 }, slider), make("td", { class: "n" }, label))));
}

function bar(part, colour, most = 1) {
  return make("div", { class: "bar" }, make("i", { style: `width:${Math.min(100, (100 * part) / most).toFixed(2)}%;background:${colour}` }));
}

function table(node, head, rows) {
  const cells = head.map(([name, kind]) => make("th", { class: kind }, name));
  node.replaceChildren(make("thead", {}, make("tr", {}, ...cells)), make("tbody", {}, ...rows));
}

function poolsTable() {
  const before = state.pool;
  const rows = AUDIT.pools.map((pool) => {
    state.pool = pool.name;
    const worth = DATA.mixes.pools[pool.name] ? usd(worthNow()) : usd(Number(pool.hindsight_worth_usd));
    const chosen = pool.name === before;
    const drawn = pool.name in DATA.series.pools;
    return make("tr", { class: (drawn ? "pick" : "") + (chosen ? " chosen" : ""), onclick: () => drawn && choose(chosen ? null : pool.name) },
      make("td", { class: "name", title: pool.name }, pool.name),
      make("td", { class: "n" }, count(pool.gpus) + (pool.capacity === "peak" ? "*" : "")),
      make("td", { class: "wide" }, bar(pool.idle_share, "var(--idle)")),
      make("td", { class: "n" }, share(pool.idle_share)),
      make("td", { class: "n" }, count(pool.idle_gpu_hours)),
      make("td", { class: "n" }, share(pool.idle_runs.find((run) => run.at_least_s === 86400).share_at_least)),
      make("td", { class: "n" }, worth));
  });
  state.pool = before;
  table($("pools"), [["pool", ""], ["GPUs", "n"], ["idle", ""], ["", "n"], ["idle GPU-hours", "n"], ["for a day or more", "n"], ["worth at most", "n"]], rows);
}

function quotasTable() {
  const quotas = AUDIT.quotas.filter((quota) => state.pool === null || quota.pool === state.pool);
  $("quotas-card").hidden = quotas.length === 0;
  const shown = quotas.slice(0, MOST_QUOTAS);
  const given = quotas.some((quota) => quota.nominal_gpus !== null);
  const most = Math.max(...shown.map((quota) => Math.max(quota.peak_gpus, quota.nominal_gpus || 0)), 1);
  $("quotas-lead").textContent = "Mean use against the most that each ever used at once"
    + (given ? " and its nominal quota" : "") + (quotas.length > shown.length ? `; the ${shown.length} largest of ${quotas.length}.` : ".");
  const rows = shown.map((quota) => make("tr", {},
    make("td", { class: "name", title: quota.name }, quota.name || "(none)"),
    make("td", {}, quota.pool),
    make("td", { class: "wide" }, make("div", { class: "bar" },
      make("i", { style: `width:${(100 * Math.max(quota.nominal_gpus || 0, quota.peak_gpus)) / most}%;background:var(--idle);opacity:.45` }),
      make("i", { style: `width:${(100 * quota.mean_gpus) / most}%;background:var(--used)` }))),
    make("td", { class: "n" }, gpus(quota.mean_gpus)),
    make("td", { class: "n" }, count(quota.peak_gpus)),
    ...(given ? [make("td", { class: "n" }, quota.nominal_gpus === null ? "–" : count(quota.nominal_gpus))] : []),
    make("td", { class: "n" }, count(quota.idle_gpu_hours)),
    make("td", { class: "n" }, count(quota.running_gpu_hours)),
    make("td", { class: "n" }, count(quota.waiting_gpu_hours))));
  table($("quotas"), [["quota", ""], ["pool", ""], ["use", ""], ["mean GPUs", "n"], ["most", "n"], ...(given ? [["nominal", "n"]] : []),
    [given ? "idle below quota" : "idle below most", "n"], ["GPU-hours used", "n"], ["waited", "n"]], rows);
}

function notes() {
  $("notes").replaceChildren(...AUDIT.notes.map((note) => make("li", {}, note.charAt(0).toUpperCase() + note.slice(1) + ".")));
  if (AUDIT.pools.some((pool) => pool.capacity === "peak")) $("notes").append(make("li", {}, "* the number of GPUs is not in the record."));
  if (AUDIT.skipped) {
    $("faults").append(make("p", {}, `${count(AUDIT.skipped)} lines of the files have faults:`),
      make("ul", {}, ...AUDIT.faults.slice(0, 20).map((fault) => make("li", {}, `${fault.file}, line ${fault.line}: ${fault.why}`))));
  }
  table($("files"), [["file", ""], ["kind", ""], ["rows used", "n"], ["lines with faults", "n"]], AUDIT.files.map((file) =>
    make("tr", {}, make("td", {}, file.name), make("td", {}, file.kind), make("td", { class: "n" }, count(file.rows)), make("td", { class: "n" }, count(file.skipped)))));
}

function draw() { figures(); timeChart(); runsChart(); weekChart(); mixChart(); replayChart(); poolsTable(); quotasTable(); }

function choose(pool) { state.pool = pool; state.zoom = null; $("pool").value = pool === null ? "" : "p:" + pool; draw(); }

// ── set-up ───────────────────────────────────────────────────────────────────────────────

$("period").textContent = `${AUDIT.from.slice(0, 10)} to ${AUDIT.to.slice(0, 10)}, ${whole.format(seconds() / 86400)} days`;
$("pool").append(make("option", { value: "" }, AUDIT.pools.length > 1 ? `all ${AUDIT.pools.length} pools` : AUDIT.pools[0].name));
if (AUDIT.pools.length > 1) for (const name of Object.keys(DATA.series.pools)) $("pool").append(make("option", { value: "p:" + name }, name));
$("pool").addEventListener("change", (event) => choose(event.target.value ? event.target.value.slice(2) : null));
$("whole").addEventListener("click", () => { state.zoom = null; timeChart(); });

const dark = matchMedia("(prefers-color-scheme: dark)");
let theme = "auto";
function paint() { document.documentElement.dataset.theme = theme === "auto" ? (dark.matches ? "dark" : "light") : theme; }
$("theme").addEventListener("click", () => {
  theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  paint();
});
dark.addEventListener("change", paint);
addEventListener("beforeprint", () => { document.documentElement.dataset.theme = "light"; });
addEventListener("afterprint", paint);
paint();
notes();
pricesTable();
draw();
let due = 0;
addEventListener("resize", () => { cancelAnimationFrame(due); due = requestAnimationFrame(() => { timeChart(); runsChart(); weekChart(); mixChart(); replayChart(); }); });
