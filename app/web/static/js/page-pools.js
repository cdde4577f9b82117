// `/pools`: totals by pool and GPU type, with the last 24 hours.

import { bar, byId, h, perFrame, setText } from "./dom.js";
import { chartPanel, sparkline } from "./chart.js";
import { Feed } from "./feed.js";
import { count, gb, percent } from "./format.js";
import { call, callPage, showLink } from "./page.js";
import { line, loadTrend } from "./trend.js";

const AMOUNTS = ["online", "busy", "offline", "cordoned", "placeable", "gpu_vram_available_gb", "gpu_vram_total_gb", "cpu_cores_available", "cpu_cores_physical"];

const PAGE = 200;

let rows = []; // of the pools that are listed
let overall = []; // of all pools, by GPU type
let pools = 0; // how many there are
let pages = 1; // how many are listed
let trends = null;

function add(groups, key, row) {
  const sum = groups.get(key) ?? { ...row };
  if (groups.has(key)) for (const name of AMOUNTS) sum[name] += row[name];
  groups.set(key, sum);
}

const free = (row) => [h("td", { class: "num" }, gb(row.gpu_vram_available_gb)), h("td", { class: "num" }, gb(row.gpu_vram_total_gb))];
const cores = (row) => [h("td", { class: "num" }, count(row.cpu_cores_available)), h("td", { class: "num" }, count(row.cpu_cores_physical))];

function day(series, row, name) {
  const points = [...line(series?.get(name), "vram"), [Date.now(), row.gpu_vram_available_gb]];
  return h("td", {}, sparkline(points, `Free VRAM of ${name} over 24 hours`, trends?.pools ?? {}));
}

function charts() {
  const all = new Map();
  for (const row of overall) add(all, "", row);
  const now = all.get("");
  if (!now || !trends) return;
  const { from, until, series } = trends.all;
  const history = (field, value) => [...line(series.get(""), field), [until, value]];
  const used = now.gpu_vram_total_gb ? (100 * now.gpu_vram_available_gb) / now.gpu_vram_total_gb : 0;
  const usedCores = now.cpu_cores_physical ? (100 * now.cpu_cores_available) / now.cpu_cores_physical : 0;
  byId("charts").replaceChildren(
    chartPanel({ title: "Free VRAM", text: `${gb(now.gpu_vram_available_gb)} of ${gb(now.gpu_vram_total_gb)}, ${percent(used)}`, lines: [history("vram", now.gpu_vram_available_gb), history("vramTotal", now.gpu_vram_total_gb)], from, until, show: gb }),
    chartPanel({ title: "Free cores", text: `${count(now.cpu_cores_available)} of ${count(now.cpu_cores_physical)}, ${percent(usedCores)}`, lines: [history("cores", now.cpu_cores_available), history("coresTotal", now.cpu_cores_physical)], from, until, show: count }),
    chartPanel({ title: "Placeable agents", text: `${count(now.placeable)} of ${count(now.online + now.busy)} that report`, lines: [history("placeable", now.placeable), history("online", now.online)], from, until, show: count }),
  );
}

function tables() {
  byId("pools-empty").hidden = rows.length > 0;
  const byName = new Map();
  for (const row of rows) add(byName, row.pool_name, row);
  const size = (row) => byName.get(row.pool_name).gpu_vram_total_gb;
  const shown = new Set(rows.map((row) => JSON.stringify([row.agent_type, row.pool_name]))).size;
  setText(byId("pools-shown"), shown < pools ? `${count(shown)} of ${count(pools)}` : "");
  byId("pools-more").hidden = shown >= pools;
  const byPool = [...rows].sort((a, b) => size(b) - size(a) || (a.pool_name < b.pool_name ? -1 : a.pool_name > b.pool_name ? 1 : b.gpu_vram_total_gb - a.gpu_vram_total_gb || b.online - a.online));
  const drawn = new Set();
  byId("pools").replaceChildren(...byPool.map((row) => {
    // The line is that of the whole pool: once, beside its first row.
    const first = !drawn.has(row.pool_name);
    drawn.add(row.pool_name);
    return h("tr", {},
      h("td", { class: "name" }, h("a", { href: `/?${new URLSearchParams({ ...(row.agent_type !== "desktop" && { type: row.agent_type }), pool: row.pool_name })}` }, row.pool_name)),
      h("td", {}, row.agent_type), h("td", {}, row.gpu_type),
      ...["placeable", "online", "busy", "cordoned", "offline"].map((name) => h("td", { class: "num" }, count(row[name]))),
      ...free(row), first ? day(trends?.pools.series, byName.get(row.pool_name), row.pool_name) : h("td"), ...cores(row));
  }));
  const types = new Map();
  for (const row of overall) add(types, row.gpu_type, row);
  byId("gpu-types").replaceChildren(...[...types.values()].sort((a, b) => b.gpu_vram_total_gb - a.gpu_vram_total_gb).map((row) => h("tr", {},
    h("td", {}, row.gpu_type), h("td", { class: "num" }, count(row.placeable)), ...free(row), h("td", {}, bar(row.gpu_vram_available_gb, row.gpu_vram_total_gb)),
    day(trends?.types.series, row, row.gpu_type), ...cores(row))));
}

async function summary() {
  const listed = [];
  overall = await call("/api/v1/capacity/summary?by=gpu_type");
  let next = `/api/v1/capacity/summary?limit=${PAGE}`;
  for (let page = 0; page < pages && next; page += 1) {
    const answer = await callPage(next);
    listed.push(...answer.body);
    [pools, next] = [answer.total, answer.next];
  }
  rows = listed;
  tables();
}

byId("pools-more").firstChild.addEventListener("click", () => {
  pages += 1;
  refresh();
});

async function loadTrends() {
  const [all, pools, types] = await Promise.all([loadTrend(""), loadTrend("pool_name"), loadTrend("gpu_type")]).catch(() => []);
  if (!all) return; // the record is away: the lines stay as they were
  trends = { all, pools, types };
  charts();
  tables();
}

const refresh = perFrame(() => summary().catch(() => undefined), 1000); // the feed says when the API is away

new Feed({
  load: async () => {
    const [{ version }] = await Promise.all([call("/api/v1/fleet?limit=1"), summary()]);
    return version;
  },
  change: refresh,
  show: showLink,
}).start();
loadTrends();
setInterval(loadTrends, 60_000);
