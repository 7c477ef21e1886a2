// The console's pages are made by the server and work without this. With it, links and filters swap
// the part of the page that changes, forms say in place what was wrong, and what is live stays so.
import { drawAll } from "./charts.js";

const root = document.documentElement;
root.classList.add("js");
const main = () => document.getElementById("main");
const parse = (text) => new DOMParser().parseFromString(text, "text/html");
const announce = (text) => { const box = document.getElementById("said"); if (box) box.textContent = text; };
const hooks = [];
export function whenShown(run) { hooks.push(run); run(document); }

// ── theme and menu ───────────────────────────────────────────────────────────────────────

function theme() {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  document.cookie = `sublet_theme=${root.dataset.theme}; path=/console; max-age=31536000; samesite=lax`;
  dispatchEvent(new Event("themed"));
}

// ── swapping what changes ────────────────────────────────────────────────────────────────

let under = null;
async function load(address, region, { push = true, keep = false } = {}) {
  under?.abort();
  const mine = under = new AbortController();
  const place = region ? document.getElementById(region) : main();
  place?.setAttribute("aria-busy", "true");
  try {
    const answer = await fetch(address, { signal: mine.signal, headers: { "x-swap": region || "main" } });
    if (!(answer.headers.get("content-type") || "").startsWith("text/html")) { location.assign(address); return; }
    show(parse(await answer.text()), region, keep);
    if (push) history.pushState({}, "", answer.url || address);
    if (!region && !keep) { scrollTo(0, 0); main()?.focus({ preventScroll: true }); }
  } catch (error) {
    if (error.name !== "AbortError") location.assign(address);
  } finally {
    if (under === mine) under = null;
    place?.removeAttribute("aria-busy");
  }
}

function show(page, region, keep) {
  const fresh = region ? page.getElementById(region) : null;
  const old = region ? document.getElementById(region) : null;
  if (fresh && old) {
    const focused = old.contains(document.activeElement) ? document.activeElement : null;
    const field = focused?.name, at = focused?.selectionStart;
    old.replaceWith(fresh);
    if (field) {
      const again = fresh.querySelector(`[name="${field}"]`);
      again?.focus();
      if (at !== null && at !== undefined && again?.type === "search") again.setSelectionRange(at, at);
    }
    shown(fresh);
    return;
  }
  const frame = page.querySelector(".frame");
  if (!frame || !document.querySelector(".frame")) { document.body.replaceChildren(...page.body.childNodes); }
  else {
    for (const part of ["#navigation", ".body"]) document.querySelector(part).replaceWith(page.querySelector(part));
    if (!keep) document.querySelector(".side").classList.remove("open");
  }
  document.title = page.title;
  shown(document);
}

function shown(within) {
  drawAll(within);
  times(within);
  for (const run of hooks) run(within);
  // What only some pages need comes with them, at an address that changes with the file.
  for (const node of within.querySelectorAll("[data-module]")) import(node.dataset.module).then((one) => one.start(node));
  live();
}

const ours = (address) => address.origin === location.origin && address.pathname.startsWith("/console");
addEventListener("click", (event) => {
  const press = event.target.closest?.("button, a");
  if (!press) return;
  if (press.matches(".theme")) return theme();
  if (press.matches(".menu")) {
    const open = press.closest(".side").classList.toggle("open");
    press.setAttribute("aria-expanded", open);
    return;
  }
  if (press.dataset.copy) {
    const field = document.getElementById(press.dataset.copy);
    navigator.clipboard?.writeText(field.value ?? field.textContent).then(() => { press.textContent = "Copied"; });
    return;
  }
  if (press.tagName !== "A" || event.defaultPrevented || event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
  if (press.hasAttribute("download") || press.target || !press.href) return;
  const address = new URL(press.href);
  if (!ours(address) || (address.hash && address.pathname === location.pathname && address.search === location.search)) return;
  event.preventDefault();
  load(press.href, press.dataset.swap);
});
addEventListener("popstate", () => load(location.href, null, { push: false }));

function addressOf(form) {
  const asked = new URLSearchParams();
  for (const [name, value] of new FormData(form)) if (value !== "") asked.append(name, value);
  const text = asked.toString();
  return form.getAttribute("action") + (text ? "?" + text : "");
}
addEventListener("submit", async (event) => {
  const form = event.target;
  if (form.method === "get" && form.dataset.swap !== undefined) {
    event.preventDefault();
    load(addressOf(form), form.dataset.swap || null);
    return;
  }
  if (form.method !== "post" || !("form" in form.dataset)) return;
  event.preventDefault();
  if (form.getAttribute("aria-busy") === "true") return;
  form.querySelector(".error")?.remove();
  form.setAttribute("aria-busy", "true");
  try {
    const answer = await fetch(form.action, { method: "POST", body: new URLSearchParams(new FormData(form, event.submitter)) });
    const page = parse(await answer.text());
    if (answer.ok) {
      show(page, null, false);
      if (answer.redirected) history.pushState({}, "", answer.url);
      scrollTo(0, 0);
    } else complain(form, page);
  } catch { complain(form, null); }
  form.removeAttribute("aria-busy");
});
function complain(form, page) {
  const said = document.createElement("div");
  said.className = "error";
  said.setAttribute("role", "alert");
  said.append(page?.getElementById("error")?.textContent.trim() || "Sublet did not answer. Nothing was sent twice; try again.");
  const hits = page?.getElementById("hits");
  if (hits) said.append(hits);
  form.append(said);
  said.scrollIntoView({ block: "nearest" });
}
let waiting = 0;
addEventListener("input", (event) => {
  const form = event.target.form;
  if (!form || form.method !== "get" || form.dataset.swap === undefined) return;
  clearTimeout(waiting);
  waiting = setTimeout(() => form.requestSubmit(), event.target.type === "search" || event.target.type === "range" ? 220 : 0);
});

// ── times in the reader's zone ───────────────────────────────────────────────────────────

const zone = new Intl.DateTimeFormat("sv-SE", { dateStyle: "short", timeStyle: "medium" });
function times(within) {
  for (const node of within.querySelectorAll("time[datetime]")) {
    const at = new Date(node.dateTime);
    if (isNaN(at)) continue;
    node.title = node.textContent + " UTC";
    node.textContent = zone.format(at);
  }
}

// ── what is live ─────────────────────────────────────────────────────────────────────────

// The server says which topics changed; regions that show one of them are fetched again, all of a
// page's in one go, at most every few seconds, and only while somebody looks.
let stream = null, topics = "", due = 0, last = 0;
const LEAST = 2000;
function live() {
  const wanted = [...new Set([...document.querySelectorAll("[data-live]")].flatMap((node) => node.dataset.live.split(" ")))].sort().join(",");
  if (wanted === topics && (stream || !wanted)) return;
  stream?.close();
  stream = null;
  topics = wanted;
  if (!wanted) return;
  stream = new EventSource(`/console/events?topics=${encodeURIComponent(wanted)}`);
  stream.addEventListener("changed", (event) => {
    for (const node of document.querySelectorAll("[data-live]"))
      if (node.dataset.live.split(" ").some((topic) => event.data.split(",").includes(topic))) node.dataset.stale = "1";
    later();
  });
}
function later() {
  if (due || document.hidden) return;
  due = setTimeout(refresh, Math.max(0, last + LEAST - Date.now()));
}
async function refresh() {
  due = 0;
  last = Date.now();
  const stale = [...document.querySelectorAll("[data-live][data-stale]")];
  if (!stale.length || under) return;
  const at = location.href;
  try {
    const answer = await fetch(at, { headers: { "x-swap": "live" } });
    const page = parse(await answer.text());
    if (!answer.ok || location.href !== at) return;
    for (const node of stale) {
      const fresh = node.id && page.getElementById(node.id);
      if (!fresh || node.contains(document.activeElement) && document.activeElement.matches("input, select, textarea")) continue;
      node.replaceWith(fresh);
      drawAll(fresh.parentNode);
      times(fresh);
      for (const run of hooks) run(fresh);
    }
  } catch { /* the next change asks again */ }
}
document.addEventListener("visibilitychange", later);

shown(document);
