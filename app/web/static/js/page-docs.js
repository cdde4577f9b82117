// `/docs`: the viewer of the OpenAPI document, in the page's colours.

import { byId, perFrame } from "./dom.js";
import { colours, onTheme, poll, showLink } from "./page.js";

const viewer = byId("viewer");
const readable = new CSSStyleSheet();

function paint() {
  const colour = colours();
  const dark = getComputedStyle(document.documentElement).getPropertyValue("--bg").trim() === "#0f141a";
  for (const [name, value] of Object.entries({ theme: dark ? "dark" : "light", "bg-color": colour("panel"), "text-color": colour("text"), "primary-color": colour("accent"), "nav-bg-color": colour("bg"), "nav-text-color": colour("text") })) viewer.setAttribute(name, value);
  // Its own colours for methods and links are too pale to read.
  readable.replaceSync(`*, ::before, ::after { --blue: ${colour("accent")} !important; --green: ${colour("good")} !important; --orange: ${colour("busy")} !important; --red: ${colour("bad")} !important; }`);
}

// The viewer names its fields beside them only: those who hear the page are told as well.
const watched = new WeakSet();

function nameFields(root) {
  for (const field of root.querySelectorAll("input, select, textarea")) {
    if (!field.hasAttribute("aria-label")) field.setAttribute("aria-label", field.dataset.pname ?? field.placeholder ?? "Choice");
    if (!field.getAttribute("aria-label")) field.setAttribute("aria-label", "Choice");
  }
  for (const element of root.querySelectorAll("*")) if (element.shadowRoot) watch(element.shadowRoot);
}

function watch(root) {
  if (watched.has(root)) return;
  watched.add(root);
  root.adoptedStyleSheets = [...root.adoptedStyleSheets, readable];
  const again = perFrame(() => nameFields(root), 300);
  new MutationObserver(again).observe(root, { childList: true, subtree: true });
  nameFields(root);
}

paint();
onTheme(paint);
customElements.whenDefined("rapi-doc").then(() => requestAnimationFrame(() => watch(viewer.shadowRoot)));
import("../vendor/rapidoc/rapidoc-min.js");
poll(async () => {
  const response = await fetch("/livez");
  if (!response.ok) throw Object.assign(new Error("not alive"), { status: response.status });
}, { every_s: 10, show: showLink });
