// `/health`: stream, workers, index and record.

import { byId, h, setText } from "./dom.js";
import { count, moment, plural, span } from "./format.js";
import { call, poll, showLink } from "./page.js";

const MEGA = 1024 * 1024;

function part(name, is, text, detail = "") {
  return h("div", { class: "tile" }, h("dt", {}, h("span", { class: `dot ${is === "up" ? "" : is === "slow" ? "busy" : "away"}` }), name), h("dd", {}, text, " ", h("small", {}, detail)));
}

function fact(name, value) {
  return h("div", {}, h("dt", {}, name), h("dd", {}, value));
}

const WORK = { index: "ingest", record: "recorder" };
const LATE_S = 10;

function show(ready, health) {
  const { index, record } = ready.parts;
  const groups = health?.groups ?? [];
  const behind = Math.max(0, ...groups.map((group) => group.backlog_age_s));
  const idle = groups.filter((group) => group.workers === 0).map((group) => WORK[group.group]);
  const workers = [...idle, ...(health && !health.reaper ? ["reaper"] : [])];
  byId("parts").replaceChildren(
    part("API", "up", "up", health ? plural(health.receivers, "receiver") : ""),
    part("Index", index.status === "up" ? "up" : "away", index.status === "up" ? "up" : index.code === "index_rebuilding" ? "rebuilding" : "away", health?.epoch_opened_at ? `since ${moment(Date.parse(health.epoch_opened_at))}` : ""),
    part("Record", record.status === "up" ? "up" : "away", record.status),
    part("Stream", !health ? "away" : behind > LATE_S ? "slow" : "up", !health ? "away" : behind > LATE_S ? "behind" : "in step", behind > 1 ? `by ${span(behind)}` : ""),
    part("Workers", health && !workers.length ? "up" : "away", !health ? "unknown" : workers.length ? "missing" : "all there", workers.join(", ")),
  );
  if (!health) {
    setText(byId("stream"), "Redis does not answer");
    return;
  }
  setText(byId("stream"), `${plural(health.log_entries, "entry", "entries")} in the stream, ${plural(health.dead_letters, "dead letter")}`);
  byId("groups").replaceChildren(...groups.map((group) => h("tr", {},
    h("td", {}, group.group, h("small", { class: "muted" }, ` (${WORK[group.group]})`)), h("td", { class: "num" }, plural(group.backlog_entries, "entry", "entries")),
    h("td", { class: "num" }, group.backlog_age_s ? span(group.backlog_age_s) : "–"), h("td", { class: `num ${group.workers ? "" : "bad"}` }, count(group.workers)))));
  byId("stores").replaceChildren(
    fact("Report", plural(health.reporting, "agent")), fact("Silent", count(health.silent)), fact("Offline", count(health.offline)), fact("Cordoned", count(health.cordoned)),
    fact("Flapping", count(health.flapping)), fact("Cloned", count(health.cloned)), fact("Redis memory", `${count(health.memory_bytes / MEGA)} MiB`),
    fact("Reaper", health.reaper ? "at work" : h("span", { class: "bad" }, "nobody")), fact("Grace", health.grace_s ? `${span(health.grace_s)} left` : "none"));
}

poll(async () => {
  const response = await fetch("/readyz", { cache: "no-store" });
  const health = await call("/api/v1/health").catch((error) => {
    if (error.status === 503) return null;
    throw error;
  });
  show(await response.json(), health);
}, { every_s: 2, show: showLink });
