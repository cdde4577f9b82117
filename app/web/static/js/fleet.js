// The fleet as this page knows it, in the planner's order: most free VRAM first, ties by descending id.

import { call } from "./page.js";

const MOST_LOOKUPS = 20;
const MOST_TRIES = 5;
const LOOK_UP_AFTER_MS = 1500;

// The id just below: a list that begins after it begins with the agent, and is empty, not an error, without it.
function before(id) {
  const below = (BigInt(`0x${id.replaceAll("-", "")}`) - 1n).toString(16).padStart(32, "0");
  return below.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}

export const stateOf = (agent) => (agent.status === "offline" ? "offline" : agent.cordoned ? "cordoned" : agent.status === "busy" ? "busy" : agent.placeable ? "online" : "offline");

// A steady place within its cell for each agent, so that equal machines do not hide each other.
function scatter(id) {
  return [parseInt(id.slice(0, 4), 16) / 65536, parseInt(id.slice(4, 8), 16) / 65536];
}

function newAgent(id) {
  const [dx, dy] = scatter(id);
  return { id, host: "", type: "", pool: "", gpu: "none", status: "online", placeable: false, cordoned: false, vram: 0, vramTotal: 0, cores: 0, coresTotal: 0, seen: 0, state: "offline", dx, dy };
}

export class Fleet {
  constructor() {
    this.agents = new Map();
    this.order = [];
    this.unsorted = false;
    this.unknown = new Map();
    this.described = () => {};
    this.source = "index";
    this.changes = 0; // grows with every change
  }

  // Reads all pages, then takes their place at once; a big fleet is shown from its first page on.
  async load(shown) {
    const agents = new Map();
    let version = null;
    let cursor = null;
    do {
      const page = await call(`/api/v1/fleet${cursor ? `?cursor=${encodeURIComponent(cursor)}` : ""}`);
      version ??= page.version;
      this.source = page.source;
      for (const row of page.agents) this.#add(agents, row);
      cursor = page.cursor;
      if (this.agents.size < agents.size) {
        this.#take(agents);
        shown?.();
      }
    } while (cursor);
    this.#take(agents);
    return version;
  }

  #take(agents) {
    this.agents = agents;
    this.order = [...agents.values()];
    this.unsorted = true;
    this.changes += 1;
  }

  #add(agents, row) {
    const agent = newAgent(row[0]);
    [, agent.host, agent.type, agent.pool, agent.gpu, agent.status, agent.placeable, agent.cordoned, agent.vram, agent.vramTotal, agent.cores, agent.coresTotal, agent.seen] = row;
    agent.state = stateOf(agent);
    agents.set(agent.id, agent);
  }

  apply(change) {
    const id = change.agent_id;
    this.changes += 1;
    if (change.kind === "forgotten") {
      this.agents.delete(id);
      this.order = this.order.filter((agent) => agent.id !== id);
      return null;
    }
    let agent = this.agents.get(id);
    if (!agent) {
      agent = newAgent(id);
      this.agents.set(id, agent);
      this.order.push(agent);
      this.#lookUp(id);
    }
    agent.type = change.agent_type || agent.type;
    agent.pool = change.pool_name || agent.pool;
    agent.status = change.status ?? agent.status;
    agent.placeable = change.placeable;
    if (change.kind === "cordon") agent.cordoned = true;
    if (change.kind === "uncordon" || change.placeable) agent.cordoned = false;
    if (change.placeable) {
      agent.vram = change.gpu_vram_available_gb;
      agent.cores = change.cpu_cores_available;
      agent.vramTotal = Math.max(agent.vramTotal, agent.vram);
      agent.coresTotal = Math.max(agent.coresTotal, agent.cores);
    }
    if (agent.status !== "offline") agent.seen = Date.now();
    agent.state = stateOf(agent);
    this.unsorted = true;
    return agent;
  }

  // The feed says what changed; name and totals of a newcomer come from the record, which is a moment behind.
  #lookUp(id) {
    if (this.unknown.size === 0) setTimeout(() => this.#lookUpAll(), LOOK_UP_AFTER_MS);
    this.unknown.set(id, MOST_TRIES);
  }

  async #lookUpAll() {
    for (const [id, tries] of [...this.unknown].slice(0, MOST_LOOKUPS)) {
      const agent = this.agents.get(id);
      const [found] = agent ? await call(`/api/v1/agents?limit=1&after=${before(id)}`).catch(() => []) : []; // it keeps its id for a name
      if (found?.agent_id === id) this.#describe(agent, found);
      if (!agent || found?.agent_id === id || tries === 1) this.unknown.delete(id);
      else this.unknown.set(id, tries - 1);
    }
    this.changes += 1;
    this.described();
    if (this.unknown.size) setTimeout(() => this.#lookUpAll(), LOOK_UP_AFTER_MS);
  }

  #describe(agent, found) {
    const metrics = found.resource_metrics;
    agent.host = found.hostname;
    agent.gpu = metrics?.gpu_type ?? "none";
    agent.vramTotal = metrics?.gpu_vram_total_gb ?? agent.vramTotal;
    agent.coresTotal = metrics?.cpu_cores_physical ?? agent.coresTotal;
    if (!agent.placeable) [agent.vram, agent.cores] = [metrics?.gpu_vram_available_gb ?? 0, metrics?.cpu_cores_available ?? 0];
  }

  sorted() {
    if (this.unsorted) {
      this.order.sort((a, b) => b.vram - a.vram || (a.id < b.id ? 1 : -1));
      this.unsorted = false;
    }
    return this.order;
  }

  values(field) {
    return [...new Set(this.order.map((agent) => agent[field]).filter(Boolean))].sort();
  }

  totals() {
    const sum = { agents: 0, placeable: 0, busy: 0, cordoned: 0, offline: 0, vram: 0, vramTotal: 0, cores: 0, coresTotal: 0, silent: 0 };
    for (const agent of this.order) {
      sum.agents += 1;
      sum[agent.state === "online" ? "placeable" : agent.state] += 1;
      if (agent.status !== "offline") {
        sum.vramTotal += agent.vramTotal;
        sum.coresTotal += agent.coresTotal;
      }
      if (agent.placeable) {
        sum.vram += agent.vram;
        sum.cores += agent.cores;
      }
    }
    return sum;
  }
}

// How many tasks of one size an agent has room for.
export function roomFor(agent, vram, cores) {
  const byCores = Math.floor(agent.cores / Math.max(1, cores));
  return vram > 0 ? Math.min(byCores, Math.floor(agent.vram / vram)) : byCores;
}
