// The last 24 hours of totals, as the record keeps them.

import { call } from "./page.js";

const DAY_MS = 86_400_000;

// Series by name, each with its points oldest first. `by`: "pool_name", "gpu_type" or "" for one series of all.
export async function loadTrend(by, filter = {}) {
  const query = new URLSearchParams({ ...(by && { by }), ...filter });
  const answer = await call(`/api/v1/capacity/trend${query.size ? `?${query}` : ""}`);
  const until = Date.parse(answer.until);
  return { from: until - DAY_MS, until, series: new Map(answer.series.map((one) => [one.name, one.points.map(point)])) };
}

function point([at_ms, online, placeable, vram, vramTotal, cores, coresTotal]) {
  return { at: at_ms, online, placeable, vram, vramTotal, cores, coresTotal };
}

export const line = (points, field) => (points ?? []).map((one) => [one.at, one[field]]);
