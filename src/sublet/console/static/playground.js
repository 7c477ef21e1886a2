// The playground: sends what is written, shows the answer, its tokens and its cost as they come, and
// writes the same call for four SDKs.
const count = new Intl.NumberFormat("en");
const money = (nanos) => "$" + (nanos / 1e9).toFixed(nanos && nanos < 1e7 ? 6 : 4);
const priceOf = (price, tokens) => price ? price.nanos * tokens / price.per_tokens : 0;
const aMillion = (price) => price ? "$" + (price.nanos / price.per_tokens / 1e3).toFixed(2) : "–";

export function start(box) {
  const models = new Map(JSON.parse(box.querySelector("script").textContent).map((one) => [one.id, one]));
  const find = (what) => box.querySelector(what);
  const form = find("form"), text = form.elements.text, said = find(".said"), stop = find(".stop"), wrong = find(".talk > .error");
  const setup = (name) => find(`.setup [name="${name}"]`);
  const talk = [];
  let total = 0, running = null, sdk = "openai";

  const model = () => models.get(setup("model").value);
  const messages = (more) => {
    const system = setup("system").value.trim();
    return [...(system ? [{ role: "system", content: system }] : []), ...talk, ...(more ? [{ role: "user", content: more }] : [])];
  };
  function refresh() {
    const one = model();
    find(".price").textContent = `${aMillion(one.prices.input)} in and ${aMillion(one.prices.output)} out a million tokens; ${count.format(one.context_tokens)} tokens of context.`;
    const next = text.value.trim();
    const asked = { model: one.id, messages: messages(next || (talk.length ? "" : "Hello")) };
    if (!next && talk.length) asked.messages.pop(); // the call that was made last, not its answer
    for (const [name, read] of [["temperature", parseFloat], ["max_tokens", parseInt]]) if (setup(name).value) asked[name] = read(setup(name).value);
    find("#play-code").textContent = CODE[sdk](asked, box.dataset.gateway);
  }
  function turn(role, content) {
    const item = document.createElement("li"), name = document.createElement("b"), body = document.createElement("div");
    item.className = role;
    name.textContent = role === "user" ? "You" : model().id;
    body.textContent = content;
    item.append(name, body);
    said.append(item);
    find(".hint").hidden = true;
    return body;
  }
  function meter(values) { for (const [name, value] of Object.entries(values)) find(".m-" + name).textContent = value; }
  function complain(message) { wrong.textContent = message; wrong.hidden = !message; }

  async function send() {
    const mine = text.value.trim(), one = model();
    if (!mine || running) return;
    complain("");
    running = new AbortController();
    stop.hidden = false;
    form.querySelector(".main").disabled = true;
    const asked = messages(mine);
    turn("user", mine);
    const into = turn("assistant", "");
    into.setAttribute("aria-busy", "true");
    text.value = "";
    const body = new URLSearchParams({ token: form.elements.token.value, model: one.id, messages: JSON.stringify(asked) });
    for (const name of ["temperature", "max_tokens"]) if (setup(name).value) body.set(name, setup(name).value);
    meter({ input: "…", output: "0", speed: "–", cost: "…" });
    let answer = "", pieces = 0, first = 0, done = null, trouble = "";
    const began = performance.now();
    try {
      const came = await fetch(form.action, { method: "POST", body, signal: running.signal });
      if (!came.ok || !(came.headers.get("content-type") || "").startsWith("text/event-stream")) {
        const page = new DOMParser().parseFromString(await came.text(), "text/html");
        throw new Error(page.getElementById("error")?.textContent.trim() || "You are signed in no longer; open the page again.");
      }
      for await (const event of events(came.body)) {
        if (event.error) { trouble = event.error.message; break; }
        const piece = event.choices?.[0]?.delta?.content;
        if (piece) {
          first ||= performance.now();
          answer += piece;
          pieces += 1;
          into.textContent = answer;
          said.scrollTop = said.scrollHeight;
          // Until the gateway says what it was: a piece is a token, mostly.
          meter({ output: "~" + count.format(pieces), speed: speed(pieces, first), cost: "~" + money(priceOf(one.prices.output, pieces)) });
        }
        if (event.usage) done = event;
      }
      if (!done && !trouble) trouble = "The answer broke off; what came of it is billed.";
    } catch (error) {
      trouble = error.name === "AbortError" ? "Stopped; what came until then is billed." : error.message;
    }
    into.removeAttribute("aria-busy");
    if (done) {
      const { usage, sublet } = done, cached = usage.prompt_tokens_details?.cached_tokens || 0;
      total += sublet.charge_nanos;
      meter({
        input: count.format(usage.prompt_tokens) + (cached ? ` (${count.format(cached)} from the cache)` : ""),
        output: count.format(usage.completion_tokens), speed: `${speed(usage.completion_tokens, first)}, first after ${((first - began) / 1000).toFixed(2)} s`,
        cost: money(sublet.charge_nanos), total: money(total),
      });
    }
    if (trouble) complain(trouble);
    if (answer) talk.push({ role: "user", content: mine }, { role: "assistant", content: answer });
    else { text.value = mine; said.lastChild.remove(); said.lastChild.remove(); find(".hint").hidden = talk.length > 0; }
    running = null;
    stop.hidden = true;
    form.querySelector(".main").disabled = false;
    text.focus();
    refresh();
  }

  form.addEventListener("submit", (event) => { event.preventDefault(); send(); });
  text.addEventListener("keydown", (event) => { if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); } });
  stop.addEventListener("click", () => running?.abort());
  find(".clear").addEventListener("click", () => {
    running?.abort();
    talk.length = 0;
    said.replaceChildren();
    find(".hint").hidden = false;
    complain("");
    refresh();
  });
  box.addEventListener("input", refresh);
  const tabs = [...box.querySelectorAll("[data-sdk]")];
  const choose = (tab) => {
    sdk = tab.dataset.sdk;
    for (const one of tabs) { one.setAttribute("aria-selected", one === tab); one.tabIndex = one === tab ? 0 : -1; }
    find("#play-code").setAttribute("aria-labelledby", tab.id);
    refresh();
  };
  for (const tab of tabs) {
    tab.addEventListener("click", () => choose(tab));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const next = tabs[(tabs.indexOf(tab) + step + tabs.length) % tabs.length];
      choose(next);
      next.focus();
    });
  }
  refresh();
}

function speed(tokens, first) {
  const took = (performance.now() - first) / 1000;
  return first && took > 0.05 ? `${(tokens / took).toFixed(0)} tokens/s` : "–";
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const parts = held.split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trim()).join("\n");
      if (data && data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

// ── as code ──────────────────────────────────────────────────────────────────────────────

const quoted = (value) => JSON.stringify(value);
const shell = (text) => "'" + text.replaceAll("'", "'\\''") + "'";
const lines = (values, indent) => values.map((value) => `${indent}${value},`).join("\n");
const plain = (asked) => asked.messages.filter((one) => one.role !== "system");
const system = (asked) => asked.messages.find((one) => one.role === "system")?.content;
const CODE = {
  openai: (asked, gateway) => `from openai import OpenAI

client = OpenAI(base_url="${gateway}/v1", api_key="sk-sublet-…")
stream = client.chat.completions.create(
${lines([`model=${quoted(asked.model)}`, `messages=[\n${lines(asked.messages.map(quoted), "        ")}\n    ]`, ...rest(asked), "stream=True"], "    ")}
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="")`,
  anthropic: (asked, gateway) => `from anthropic import Anthropic

client = Anthropic(base_url="${gateway}", api_key="sk-sublet-…")
with client.messages.stream(
${lines([`model=${quoted(asked.model)}`, ...(system(asked) ? [`system=${quoted(system(asked))}`] : []), `messages=[\n${lines(plain(asked).map(quoted), "        ")}\n    ]`, ...rest({ max_tokens: 512, ...asked })], "    ")}
) as stream:
    for text in stream.text_stream:
        print(text, end="")`,
  boto3: (asked, gateway) => `import os
import boto3

os.environ["AWS_BEARER_TOKEN_BEDROCK"] = "sk-sublet-…"
client = boto3.client(
    "bedrock-runtime", endpoint_url="${gateway}",
    region_name="us-east-1", verify="ca.pem",
)
answer = client.converse_stream(
${lines([`modelId=${quoted(asked.model)}`, ...(system(asked) ? [`system=[{"text": ${quoted(system(asked))}}]`] : []),
    `messages=[\n${lines(plain(asked).map((one) => `{"role": ${quoted(one.role)}, "content": [{"text": ${quoted(one.content)}}]}`), "        ")}\n    ]`,
    `inferenceConfig={${[["max_tokens", "maxTokens"], ["temperature", "temperature"]].filter(([name]) => asked[name] !== undefined).map(([name, theirs]) => `"${theirs}": ${asked[name]}`).join(", ")}}`], "    ")}
)
for event in answer["stream"]:
    print(event.get("contentBlockDelta", {}).get("delta", {}).get("text", ""), end="")`,
  curl: (asked, gateway) => `curl --cacert ca.pem -N ${gateway}/v1/chat/completions \\
  -H "Authorization: Bearer sk-sublet-…" -H "Content-Type: application/json" \\
  -d ${shell(JSON.stringify({ ...asked, stream: true }, null, 2))}`,
};
function rest(asked) { return ["temperature", "max_tokens"].filter((name) => asked[name] !== undefined).map((name) => `${name}=${asked[name]}`); }
