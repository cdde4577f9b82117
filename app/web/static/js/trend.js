// The last 24 hours of totals, as the record keeps them.

import { call } from "./page.js";

const DAY_MS = 86_400_000;
const LEAST_MS = 600_000;

// Series by name, each with its points oldest first. `by`: "pool_name", "gpu_type" or "" for one series of all.
export async function loadTrend(by, filter = {}) {
  const query = new URLSearchParams({ ...(by && { by }), ...filter });
  const answer = await call(`/api/v1/capacity/trend${query.size ? `?${query}` : ""}`);
  const until = Date.parse(answer.until);
  return { from: begin(answer.series.flatMap((one) => one.points.slice(0, 1)).map((first) => first[0]), until), until, series: new Map(answer.series.map((one) => [one.name, one.points.map(point)])) };
}

// A young record has less than a day: its lines take all the width there is.
export function begin(times, until) {
  return Math.max(until - DAY_MS, Math.min(until - LEAST_MS, ...times));
}

function point([at_ms, online, placeable, vram, vramTotal, cores, coresTotal]) {
  return { at: at_ms, online, placeable, vram, vramTotal, cores, coresTotal };
}

export const line = (points, field) => (points ?? []).map((one) => [one.at, one[field]]);
