// `/agents/<id>`: figures, history, GPUs, events, cordon.

import { bar, byId, h, perFrame, setText, state } from "./dom.js";
import { chartPanel } from "./chart.js";
import { Feed } from "./feed.js";
import { amount, count, gb, moment, percent, plural, span } from "./format.js";
import { begin } from "./trend.js";
import { call, data, remember, remembered, showLink } from "./page.js";

const id = data.agent_id;
const DAY_MS = 86_400_000;
const form = byId("cordon-form");

let agent = null;
let capacity = null;

function fact(name, ...value) {
  return h("div", {}, h("dt", {}, name), h("dd", {}, ...value));
}

function figures() {
  const now = capacity;
  const shown = agent?.cordon ? "cordoned" : now.status;
  byId("state").replaceChildren(state(now.status === "offline" ? "offline" : shown));
  setText(byId("name"), agent?.hostname || id);
  document.title = `${agent?.hostname || id} · Headroom`;
  byId("facts").replaceChildren(
    fact("Free VRAM", `${amount(now.gpu_vram_available_gb)} of ${gb(now.gpu_vram_total_gb)}`, bar(now.gpu_vram_available_gb, now.gpu_vram_total_gb)),
    fact("Free cores", `${now.cpu_cores_available} of ${now.cpu_cores_physical}`, bar(now.cpu_cores_available, now.cpu_cores_physical)),
    fact("Free memory", gb(now.memory_available_gb), h("span", { class: "muted" }, ` · ${percent(now.memory_percent)} used`)),
    fact("CPU", percent(now.cpu_percent)),
    fact("Load, 1 and 5 min", `${amount(now.cpu_load_1min)} · ${amount(now.cpu_load_5min)}`),
    fact("GPU type", now.gpu_type),
    ...(agent ? [fact("Pool", h("a", { href: `/?${new URLSearchParams({ ...(agent.agent_type !== "desktop" && { type: agent.agent_type }), pool: agent.pool_name })}` }, agent.pool_name)), fact("Type", agent.agent_type), fact("Registered", moment(Date.parse(agent.registered_at)))] : []),
  );
  seen();
}

function seen() {
  if (capacity) setText(byId("seen"), `Last heartbeat ${span((Date.now() - Date.parse(capacity.timestamp)) / 1000)} ago`);
}

function gpus() {
  const found = agent?.gpus ?? [];
  if (!found.length) return byId("gpus").replaceChildren(h("p", { class: "empty" }, "It has reported no single GPUs."));
  byId("gpus").replaceChildren(h("table", {},
    h("thead", {}, h("tr", {}, ...["#", "GPU", "VRAM free", "Share"].map((name, index) => h("th", { scope: "col", class: index === 2 ? "num" : null }, name)))),
    h("tbody", {}, ...found.map((gpu) => h("tr", {}, h("td", {}, String(gpu.index)), h("td", { class: "name" }, gpu.name || gpu.uuid, h("small", {}, gpu.name ? gpu.uuid : "")),
      h("td", { class: "num" }, `${amount(gpu.vram_available_gb)} / ${gb(gpu.vram_total_gb)}`), h("td", {}, bar(gpu.vram_available_gb, gpu.vram_total_gb)))))));
}

const REASONS = { heartbeat: "", silent: "fell silent", operator: "by an operator", expired: "its time was up" };

function events(list) {
  if (!list.length) return;
  byId("events").replaceChildren(...list.map((event) => {
    const why = [event.cordon ? `${event.cordon.actor}: ${event.cordon.reason}` : REASONS[event.reason], event.changes > 1 ? `${count(event.changes)} changes` : ""].filter(Boolean).join(" · ");
    return h("li", {}, h("time", { datetime: event.at }, moment(Date.parse(event.at))), state(event.to_status === "forgotten" ? "offline" : event.to_status === "uncordoned" ? "online" : event.to_status, event.to_status), h("span", { class: "what" }, why));
  }));
}

function charts(samples) {
  const now = Date.now();
  const points = samples.filter((one) => now - Date.parse(one.at) < DAY_MS).reverse();
  const lines = (field, total) => [points.map((one) => [Date.parse(one.at), one.resources[field]]), ...(total ? [points.map((one) => [Date.parse(one.at), one.resources[total]])] : [])];
  const common = { from: begin(points.map((one) => Date.parse(one.at)), now), until: now };
  byId("charts").replaceChildren(
    chartPanel({ ...common, title: "Free VRAM over 24 h", text: gb(capacity.gpu_vram_available_gb), lines: lines("gpu_vram_available_gb", "gpu_vram_total_gb"), show: gb }),
    chartPanel({ ...common, title: "Free cores over 24 h", text: plural(capacity.cpu_cores_available, "core"), lines: lines("cpu_cores_available", "cpu_cores_physical"), show: count }),
    chartPanel({ ...common, title: "CPU over 24 h", text: percent(capacity.cpu_percent), lines: lines("cpu_percent"), show: percent, most: 100 }),
  );
}

function cordon() {
  const now = agent?.cordon;
  const text = byId("cordon-now");
  text.hidden = !now;
  form.hidden = Boolean(now);
  if (!now) return;
  const until = now.expires_at ? `until ${moment(Date.parse(now.expires_at))}` : "until it is lifted";
  text.replaceChildren(h("b", {}, now.reason), h("span", { class: "muted" }, ` · ${now.actor}, since ${moment(Date.parse(now.since))}, ${until} `), h("button", { type: "button", onclick: () => change(null) }, "Uncordon"));
}

async function change(wanted) {
  const said = byId("cordon-said");
  setText(said, "…");
  try {
    const answer = await call(`/api/v1/agents/${id}`, { method: "PATCH", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ cordon: wanted }) });
    if (agent) agent.cordon = answer.cordon;
    setText(said, `${answer.cordon ? "Cordoned: no search finds it." : "Uncordoned: searches find it again."}${answer.recorded ? "" : " The record is away and will follow."}`);
    cordon();
    if (capacity) figures();
    (answer.cordon ? byId("cordon-now").querySelector("button") : form.reason)?.focus();
  } catch (error) {
    setText(said, `It was not changed: ${error.message}`);
  }
}

form.actor.value = remembered("headroom-actor");
form.addEventListener("submit", (event) => {
  event.preventDefault();
  const sent = { reason: form.reason.value.trim(), actor: form.actor.value.trim() };
  if (form.expires.value) sent.expires_in_s = Number(form.expires.value);
  remember("headroom-actor", sent.actor);
  change(sent);
});

async function load({ details = true } = {}) {
  const [now, known] = await Promise.all([call(`/api/v1/agents/${id}/capacity`), details ? call(`/api/v1/agents/${id}`).catch(() => null) : agent]);
  capacity = now;
  agent = known ?? agent;
  figures();
  gpus();
  cordon();
}

async function history() {
  const found = await call(`/api/v1/agents/${id}/history?limit=300`).catch(() => null); // the record is away
  if (!found || !capacity) return;
  events(found.events.slice(0, 30));
  charts(found.samples);
}

// The record follows the index by a moment; what it adds is asked for once it has had the time.
const refresh = perFrame(() => load({ details: false }).catch(() => undefined), 200); // the feed says when the API is away
let later = 0;

new Feed({
  load: async () => {
    const { version } = await call("/api/v1/fleet?limit=1");
    await load();
    history();
    return version;
  },
  change: (changed) => {
    if (changed.agent_id !== id) return;
    refresh();
    clearTimeout(later);
    later = setTimeout(() => load().then(history, () => undefined), 1500);
  },
  show: showLink,
}).start();
setInterval(seen, 1000);
setInterval(() => document.hidden || load().catch(() => undefined), 15_000);
setInterval(() => document.hidden || history(), 60_000);
