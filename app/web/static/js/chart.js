// Lines over time as SVG: small ones for tables, larger ones with axes and a readout.

import { h, s } from "./dom.js";
import { moment } from "./format.js";

function path(points, x, y) {
  return points.map(([at, value], index) => `${index ? "L" : "M"}${x(at).toFixed(1)} ${y(value).toFixed(1)}`).join("");
}

// `points`: [[ms, value], …], oldest first. `label` says to a screen reader what the line is.
export function sparkline(points, label, { from, until } = {}) {
  const [width, height] = [132, 30];
  const root = s("svg", { class: "spark", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": label });
  if (points.length < 2) return root;
  const [first, last] = [from ?? points[0][0], until ?? points.at(-1)[0]];
  const most = Math.max(...points.map((point) => point[1]), 1e-9);
  const x = (at) => ((at - first) / Math.max(1, last - first)) * width;
  const y = (value) => height - 2 - (value / most) * (height - 4);
  const line = path(points, x, y);
  root.append(s("path", { class: "area", d: `${line}L${x(points.at(-1)[0]).toFixed(1)} ${height}L${x(points[0][0]).toFixed(1)} ${height}Z` }), s("path", { d: line }));
  return root;
}

function niceCeiling(value) {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10].map((factor) => factor * power).find((candidate) => candidate >= value * 0.999);
}

// A panel with one or two lines; the second is the dashed one, such as a total.
export function chartPanel({ title, text, lines, from, until, show, most }) {
  const readout = h("p", { "aria-live": "off" }, text);
  const body = h("div", { class: "body" });
  const draw = (width) => body.replaceChildren(chart({ title, text, lines, from, until, show, most, width, readout }));
  new ResizeObserver(([entry]) => {
    if (entry.contentRect.width > 0) draw(Math.round(entry.contentRect.width));
  }).observe(body);
  return h("section", { class: "panel", "aria-label": title }, h("header", {}, h("h2", {}, title), readout), body);
}

export function chart({ title, text, lines, from, until, show, most, width, height = 190, readout = null }) {
  const pad = { left: 58, right: 8, top: 10, bottom: 22 };
  const values = lines.flatMap((line) => line.map((point) => point[1]));
  const greatest = Math.max(...values, 0);
  const axis = show.axis?.(greatest) ?? { unit: 1, show };
  const top = most ?? axis.unit * niceCeiling(greatest / axis.unit);
  const x = (at) => pad.left + ((at - from) / Math.max(1, until - from)) * (width - pad.left - pad.right);
  const y = (value) => height - pad.bottom - (value / top) * (height - pad.top - pad.bottom);
  const root = s("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${title}: ${text}` });
  for (const step of [0, 0.5, 1]) {
    root.append(s("path", { class: "grid", d: `M${pad.left} ${y(top * step).toFixed(1)}H${width - pad.right}` }),
      s("text", { x: pad.left - 8, y: y(top * step) + 4, "text-anchor": "end" }, axis.show(top * step)));
  }
  const steps = width > 320 ? [0, 0.25, 0.5, 0.75, 1] : [0, 0.5, 1];
  for (const step of steps) {
    const anchor = step === 0 ? "start" : step === 1 ? "end" : "middle";
    root.append(s("text", { x: x(from + step * (until - from)), y: height - 5, "text-anchor": anchor }, hour(from + step * (until - from))));
  }
  const [main, second] = lines;
  if (second?.length > 1) root.append(s("path", { class: "line second", d: path(second, x, y) }));
  if (main.length > 1) {
    const line = path(main, x, y);
    root.append(s("path", { class: "area", d: `${line}L${x(main.at(-1)[0]).toFixed(1)} ${y(0)}L${x(main[0][0]).toFixed(1)} ${y(0)}Z` }), s("path", { class: "line", d: line }));
  }
  if (main.length) root.append(s("circle", { class: "at", cx: x(main.at(-1)[0]), cy: y(main.at(-1)[1]), r: 3 }));
  if (readout && main.length) read(root, readout, { main, x, show, pad, width, height, text });
  return root;
}

// Where the pointer is, the readout says what was.
function read(root, readout, { main, x, show, pad, width, height, text }) {
  const hair = s("path", { class: "hair", d: "" });
  root.append(hair);
  root.addEventListener("pointermove", (event) => {
    const box = root.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * width;
    const nearest = main.reduce((best, point) => (Math.abs(x(point[0]) - at) < Math.abs(x(best[0]) - at) ? point : best), main[0]);
    hair.setAttribute("d", `M${x(nearest[0]).toFixed(1)} ${pad.top}V${height - pad.bottom}`);
    readout.textContent = `${moment(nearest[0])}: ${show(nearest[1])}`;
  });
  root.addEventListener("pointerleave", () => {
    hair.setAttribute("d", "");
    readout.textContent = text;
  });
}

function hour(ms) {
  return new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" }).format(ms);
}
