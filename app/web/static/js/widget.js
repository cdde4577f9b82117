// One widget in its frame: figures from its JSON, again every few seconds while it is seen.

import { bar, byId, h, setText } from "./dom.js";
import { chart } from "./chart.js";
import { count, gb, plural, span } from "./format.js";
import { call, data, poll } from "./page.js";
import { begin } from "./trend.js";

const EVERY_S = 5;
const TREND_EVERY_S = 60;

const body = byId("body");

function big(text, small) {
  return h("p", { class: "big" }, text, " ", h("small", { class: "muted" }, small));
}

const draw = {
  fit: (shown) => [big(count(shown.agents), shown.agents === 1 ? "agent fits" : "agents fit"), h("p", { class: "muted" }, `room for ${plural(shown.tasks, "such task")}`)],
  pools: (shown) => [h("div", { class: "rows" }, ...shown.pools.slice(0, data.most).flatMap((pool) => [
    h("span", { class: "name" }, pool.pool), bar(pool.vram_free_gb, pool.vram_total_gb), h("span", { class: "right nowrap" }, gb(pool.vram_free_gb))]))],
  trend: (shown) => {
    const points = shown.points.map((point) => [Date.parse(point.time), point.vram_free_gb]);
    const until = Date.now();
    const now = shown.now ? gb(shown.now.vram_free_gb) : "nothing yet";
    const width = Math.max(200, body.clientWidth);
    return [big(now, "free"), chart({ title: "Free VRAM", text: now, lines: [points], from: begin(points.slice(0, 1).map((first) => first[0]), until), until, show: gb, width, height: Math.max(80, innerHeight - 90) })];
  },
  agent: (shown) => [
    big(shown.status, `${span((Date.now() - Date.parse(shown.last_heartbeat_at)) / 1000)} ago`),
    h("dl", { class: "facts" },
      h("div", {}, h("dt", {}, "Free VRAM"), h("dd", {}, `${gb(shown.vram_free_gb)} of ${gb(shown.vram_total_gb)}`, bar(shown.vram_free_gb, shown.vram_total_gb))),
      h("div", {}, h("dt", {}, "Free cores"), h("dd", {}, `${shown.cores_free} of ${shown.cores_total}`, bar(shown.cores_free, shown.cores_total)))),
  ],
};

poll(async () => {
  const shown = await call(data.json);
  if (shown.name) setText(byId("label"), shown.name);
  body.replaceChildren(...draw[data.view](shown));
}, {
  every_s: data.view === "trend" ? TREND_EVERY_S : EVERY_S,
  show: (state) => {
    byId("widget").dataset.state = state === "live" ? "live" : "away";
    byId("away-note").hidden = state === "live";
  },
});
