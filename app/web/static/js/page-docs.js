// `/docs`: the viewer of the OpenAPI document, in the page's colours.

import { byId } from "./dom.js";
import { colours, onTheme, poll, showLink } from "./page.js";

const viewer = byId("viewer");

function paint() {
  const colour = colours();
  const dark = getComputedStyle(document.documentElement).getPropertyValue("--bg").trim() === "#0f141a";
  for (const [name, value] of Object.entries({ theme: dark ? "dark" : "light", "bg-color": colour("panel"), "text-color": colour("text"), "primary-color": colour("accent"), "nav-bg-color": colour("bg"), "nav-text-color": colour("text") })) viewer.setAttribute(name, value);
}

paint();
onTheme(paint);
import("../vendor/rapidoc/rapidoc-min.js");
poll(async () => {
  const response = await fetch("/livez");
  if (!response.ok) throw Object.assign(new Error("not alive"), { status: response.status });
}, { every_s: 10, show: showLink });
