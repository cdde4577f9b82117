// `/`: what fits, on the map and in the list; totals, pools, changes.

import { bar, byId, h, perFrame, setText, state } from "./dom.js";
import { sparkline } from "./chart.js";
import { Feed } from "./feed.js";
import { Fleet, roomFor } from "./fleet.js";
import { amount, count, gb, plural, shellWord, time } from "./format.js";
import { FleetMap } from "./map.js";
import { data, setLine, showLink } from "./page.js";
import { line, loadTrend } from "./trend.js";

const VRAM_STEPS = [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 14, 16, 18, 20, 22, 24, 28, 32, 36, 40, 44, 48, 56, 64, 72, 80, 96, 112, 128, 141, 160, 192, 256, 288, 512, 1024, 2048];
const CORE_STEPS = [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 384, 512, 1024, 4096, 16384, 65536];
const PAGE = 100;
const KEPT_CHANGES = 14;
const SHOWN_POOLS = 8;
const TREND_EVERY_MS = 60_000;
const AT_REST_AFTER_MS = 200;

const fleet = new Fleet();
const ask = { vram: data.ask.vram, cores: data.ask.cores, type: data.ask.type, pool: data.ask.pool, gpu: data.ask.gpu, show: data.ask.show, q: data.ask.q };
let listed = PAGE;
let trends = null;
let moved = -Infinity;
let restTimer = 0;

const within = (agent) => agent.type === ask.type && (!ask.pool || agent.pool === ask.pool) && (!ask.gpu || agent.gpu === ask.gpu);
const fits = (agent) => agent.placeable && agent.vram >= ask.vram && agent.cores >= ask.cores && within(agent);

const map = new FleetMap(byId("map"), {
  pick: (agent) => location.assign(`/agents/${agent.id}`),
  describe: (agent) => [h("b", {}, agent.host || agent.id), `${agent.pool} · `, state(agent.state), h("br"), `${amount(agent.vram)} of ${amount(agent.vramTotal)} GB VRAM free`, h("br"), `${agent.cores} of ${plural(agent.coresTotal, "core")} free`],
});

// The sliders: steps along the scale of the map, as far as the fleet goes; the boxes take any number.

function slider(name, steps, show) {
  const range = byId(`${name}-range`);
  const box = byId(name);
  const nearest = (value) => range.steps.reduce((best, step, index) => (Math.abs(step - value) < Math.abs(range.steps[best] - value) ? index : best), 0);
  range.fit = (most) => {
    const far = steps.findIndex((step) => step >= most);
    range.steps = steps.slice(0, (far < 0 ? steps.length : far + 1));
    range.max = range.steps.length - 1;
    range.value = nearest(ask[name]);
    range.setAttribute("aria-valuetext", show(ask[name]));
  };
  range.steps = steps;
  const set = (value) => {
    ask[name] = value;
    range.setAttribute("aria-valuetext", show(value));
    asked();
  };
  range.addEventListener("input", () => {
    box.value = range.steps[range.value];
    set(range.steps[range.value]);
  });
  box.addEventListener("input", () => {
    const value = name === "cores" ? Math.max(1, Math.ceil(Number(box.value))) : Math.max(0, Number(box.value));
    if (!Number.isFinite(value)) return;
    range.value = nearest(value);
    set(value);
  });
  return range;
}

byId("vram").value = ask.vram;
const sliders = { vram: slider("vram", VRAM_STEPS, (gigabytes) => `${gigabytes} GB`), cores: slider("cores", CORE_STEPS, (cores) => plural(cores, "core")) };

for (const name of ["type", "pool", "gpu", "show", "q"]) {
  byId(name).addEventListener("input", (event) => {
    ask[name] = event.target.value;
    listed = PAGE;
    asked();
  });
}
byId("list-more").firstChild.addEventListener("click", () => {
  listed += PAGE;
  draw();
});

function options(id, values, chosen, any) {
  const select = byId(id);
  const wanted = [...(any ? [""] : []), ...new Set([...values, ...(chosen ? [chosen] : [])])];
  if (select.known === wanted.join("\n")) return;
  select.known = wanted.join("\n");
  select.replaceChildren(...wanted.map((value) => h("option", { value, selected: value === chosen }, value || "any")));
}

// The address says what is asked, so that it can be sent to somebody else.

let addressTimer = 0;

function address() {
  const query = new URLSearchParams();
  const usual = { vram: 0, cores: 1, type: data.default_type, pool: "", gpu: "", show: "", q: "" };
  for (const [name, value] of Object.entries(ask)) if (value !== usual[name]) query.set(name, value);
  clearTimeout(addressTimer);
  addressTimer = setTimeout(() => {
    history.replaceState(null, "", query.size ? `/?${query}` : "/");
    setLine("Address", location.href);
  }, 150);
  const search = new URLSearchParams({ min_gpu_vram_gb: ask.vram, min_cpu_cores: ask.cores });
  if (ask.type !== data.default_type) search.set("agent_type", ask.type);
  if (ask.pool) search.set("pool_name", ask.pool);
  if (ask.gpu) search.set("gpu_type", ask.gpu);
  setLine("JSON", `${location.origin}/api/v1/agents/available-capacity?${search}`);
  const filled = data.redis_line.replace(/TYPE|VRAM|CORES/g, (word) => ({ TYPE: ask.type, VRAM: ask.vram, CORES: ask.cores })[word]);
  setLine("redis-cli", ask.pool ? `${filled} ${shellWord(ask.pool)}` : filled);
}

// Drawing

function wanted(agent) {
  if (!within(agent)) return false;
  if (ask.q && !agent.host.includes(ask.q) && !agent.id.startsWith(ask.q)) return false;
  if (ask.show === "all") return true;
  return ask.show ? agent.state === ask.show : fits(agent);
}

function draw() {
  const rows = [];
  let [agents, tasks, matching] = [0, 0, 0];
  const most = { vram: 8, cores: 4 };
  const ofType = [];
  for (const agent of fleet.sorted()) {
    if (agent.type === ask.type) {
      ofType.push(agent);
      if (agent.vram > most.vram) most.vram = agent.vram;
      if (agent.cores > most.cores) most.cores = agent.cores;
    }
    if (fits(agent)) {
      agents += 1;
      tasks += roomFor(agent, ask.vram, ask.cores);
    }
    if (wanted(agent)) {
      matching += 1;
      if (rows.length < listed) rows.push(agent);
    }
  }
  if (!sliders.vram.matches(":active")) sliders.vram.fit(most.vram);
  if (!sliders.cores.matches(":active")) sliders.cores.fit(most.cores);
  const chosen = ask.show || ask.q ? wanted : null;
  map.set(ofType, { ...ask, most, chosen, moving: performance.now() - moved < AT_REST_AFTER_MS, candidate: (agent) => agent.placeable && within(agent), version: [fleet.changes, ask.type, ask.pool, ask.gpu, ask.show, ask.q].join("\u0000") });
  setText(byId("fit-count"), `${plural(agents, "agent")} ${agents === 1 ? "fits" : "fit"}`);
  setText(byId("fit-tasks"), agents && (ask.vram > 0 || ask.cores > 1) ? `room for ${plural(tasks, "such task")}` : "");
  list(rows, matching);
}

function list(rows, matching) {
  const body = byId("list");
  const known = body.known ?? new Map();
  const fresh = new Map();
  const nodes = rows.map((agent) => {
    const said = [agent.host, agent.pool, agent.state, agent.vram, agent.vramTotal, agent.cores, agent.coresTotal].join("\u0000");
    let row = known.get(agent.id);
    if (row?.said !== said) row = Object.assign(rowOf(agent), { said });
    fresh.set(agent.id, row);
    return row;
  });
  body.known = fresh;
  if (nodes.length !== body.children.length || nodes.some((node, index) => body.children[index] !== node)) body.replaceChildren(...nodes);
  byId("list-empty").hidden = matching > 0;
  byId("list-more").hidden = matching <= rows.length;
  setText(byId("list-more").firstChild, `Show more of ${count(matching)}`);
}

function rowOf(agent) {
  const of = (total) => h("small", { class: "muted of" }, ` / ${total}`);
  return h("tr", {},
    h("td", { class: "name" }, h("a", { href: `/agents/${agent.id}`, title: agent.id }, agent.host || agent.id), h("small", {}, agent.pool)),
    h("td", {}, state(agent.state)),
    h("td", { class: "num" }, amount(agent.vram), of(`${amount(agent.vramTotal)} GB`)),
    h("td", { class: "num" }, String(agent.cores), of(agent.coresTotal)));
}

function tile(id, value, of, share) {
  const node = byId(`tile-${id}`);
  setText(node.querySelector("span"), value);
  if (of !== undefined) setText(node.querySelector("small"), `of ${of}`);
  if (share !== undefined) node.querySelector("rect").setAttribute("width", (100 * share || 0).toFixed(1));
}

function totals() {
  const sum = fleet.totals();
  tile("placeable", count(sum.placeable), count(sum.agents));
  tile("vram", gb(sum.vram), gb(sum.vramTotal), sum.vram / sum.vramTotal);
  tile("cores", count(sum.cores), count(sum.coresTotal), sum.cores / sum.coresTotal);
  for (const name of ["busy", "cordoned", "offline"]) tile(name, count(sum[name]));
  setText(byId("subtitle"), `${plural(sum.agents, "agent")} in ${plural(fleet.values("pool").length, "pool")}${fleet.source === "record" ? ", from the record" : ""}`);
  options("type", fleet.values("type"), ask.type, false);
  options("pool", fleet.values("pool"), ask.pool, true);
  options("gpu", fleet.values("gpu"), ask.gpu, true);
  pools();
}

function pools() {
  const sums = new Map();
  for (const agent of fleet.order) {
    const sum = sums.get(agent.pool) ?? { name: agent.pool, agents: 0, placeable: 0, vram: 0, vramTotal: 0, cores: 0 };
    sum.agents += 1;
    if (agent.status !== "offline") sum.vramTotal += agent.vramTotal;
    if (agent.placeable) {
      sum.placeable += 1;
      sum.vram += agent.vram;
      sum.cores += agent.cores;
    }
    sums.set(agent.pool, sum);
  }
  const largest = [...sums.values()].sort((a, b) => b.vramTotal - a.vramTotal || b.agents - a.agents || (a.name < b.name ? -1 : 1)).slice(0, SHOWN_POOLS);
  setText(byId("pools-shown"), largest.length < sums.size ? `${largest.length} of ${count(sums.size)}` : "");
  byId("pools").replaceChildren(...largest.map((pool) => {
    const day = [...line(trends?.series.get(pool.name), "vram"), [Date.now(), pool.vram]];
    return h("tr", {},
      h("td", { class: "name" }, h("a", { href: `/?pool=${encodeURIComponent(pool.name)}` }, pool.name)),
      h("td", { class: "num" }, count(pool.placeable), h("small", { class: "muted" }, ` / ${count(pool.agents)}`)),
      h("td", { class: "num" }, gb(pool.vram)),
      h("td", { class: "wide" }, bar(pool.vram, pool.vramTotal)),
      h("td", { class: "wide" }, sparkline(day, `Free VRAM of ${pool.name} over 24 hours`, trends ?? {})),
      h("td", { class: "num" }, count(pool.cores)));
  }));
}

const WORDS = { cordon: "cordoned", uncordon: "uncordoned", forgotten: "forgotten" };

function told(change, agent) {
  const what = WORDS[change.kind] ?? (change.placeable ? `${amount(change.gpu_vram_available_gb)} GB · ${plural(change.cpu_cores_available, "core")}` : agent?.state ?? "");
  const list = byId("changes");
  if (list.dataset.begun === undefined) list.replaceChildren();
  list.dataset.begun = "";
  list.prepend(h("li", {}, h("time", {}, time(Date.now())), h("span", { class: `dot ${agent && agent.state !== "online" ? agent.state : ""}` }), h("a", { href: `/agents/${change.agent_id}` }, agent?.host || change.agent_id), h("span", { class: "what" }, what)));
  while (list.children.length > KEPT_CHANGES) list.lastChild.remove();
}

// A burst of changes is shown by its last few.
let burst = [];
const tellAll = perFrame(() => {
  for (const [change, agent] of burst.slice(-KEPT_CHANGES)) told(change, agent);
  burst = [];
}, 250);

const redraw = perFrame(draw, 100);
const recount = perFrame(totals, 400);
const dragged = perFrame(draw);

function asked() {
  moved = performance.now();
  clearTimeout(restTimer);
  restTimer = setTimeout(draw, AT_REST_AFTER_MS + 10);
  address();
  dragged();
}

async function loadTrends() {
  trends = await loadTrend("pool_name").catch(() => trends); // the record is away: the lines stay as they were
  recount();
}

address();
fleet.described = () => {
  redraw();
  recount();
};
new Feed({
  load: async () => {
    const version = await fleet.load(() => {
      redraw();
      recount();
    });
    redraw();
    recount();
    return version;
  },
  change: (change) => {
    const agent = fleet.apply(change);
    burst.push([change, agent]);
    if (burst.length > 500) burst = burst.slice(-KEPT_CHANGES);
    tellAll();
    redraw();
    recount();
  },
  show: showLink,
}).start();
loadTrends();
setInterval(loadTrends, TREND_EVERY_MS);
