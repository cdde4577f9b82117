// `/waiting`: who waits, and for what.

import { byId, h, setText } from "./dom.js";
import { count, plural, span, wants } from "./format.js";
import { call, poll, showLink } from "./page.js";

function size(task) {
  return wants({ vram: task.min_gpu_vram_gb, cores: task.min_cpu_cores, memory: task.min_memory_gb });
}

function show(waiting) {
  const { searches } = waiting;
  const waiters = searches.reduce((sum, one) => sum + one.waiters, 0);
  setText(byId("subtitle"), searches.length ? `${plural(waiters, "call")} for ${plural(searches.length, "different search", "different searches")}` : "Who asked for more than there is, and waits for it");
  byId("waiting-empty").hidden = searches.length > 0;
  byId("waiting").replaceChildren(...searches.map((one) => h("tr", {},
    h("td", { class: "wants" }, h("a", { href: `/?${new URLSearchParams({ vram: one.min_gpu_vram_gb, cores: one.min_cpu_cores, ...(one.agent_type !== "desktop" && { type: one.agent_type }), ...(one.pool_name && { pool: one.pool_name }), ...(one.gpu_type && { gpu: one.gpu_type }) })}` }, size(one))),
    h("td", {}, one.agent_type), h("td", {}, one.pool_name ?? "any"), h("td", {}, one.gpu_type ?? "any"),
    h("td", { class: "num" }, count(one.waiters)), h("td", { class: "num" }, span(one.longest_wait_s)))));
}

function showTasks(tasks) {
  byId("tasks-empty").hidden = Boolean(tasks?.length);
  setText(byId("tasks-empty"), tasks === null ? "The record is away." : "No task is pending.");
  byId("tasks").replaceChildren(...(tasks ?? []).map((task) => h("tr", {},
    h("td", { class: "name" }, h("a", { href: `/api/v1/status/${task.task_id}` }, task.name)),
    h("td", { class: "wants" }, wants({ vram: task.gpu_vram_gb, cores: task.cpu_cores, memory: task.memory_gb })),
    h("td", {}, task.agent_type), h("td", {}, task.pool_name ?? "any"), h("td", {}, task.gpu_type ?? "any"),
    h("td", { class: "name" }, h("a", { href: `/api/v1/plan/${task.plan_id}` }, task.plan_id)))));
}

poll(async () => {
  const waiting = await call("/api/v1/waiting");
  show(waiting);
  showTasks(waiting.tasks);
}, { every_s: 2, show: showLink });
