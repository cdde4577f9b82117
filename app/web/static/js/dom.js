// Elements from code. Text goes in as text: nothing in these pages is ever parsed as HTML.

const SVG = "http://www.w3.org/2000/svg";

function build(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined).map((child) => (child instanceof Node ? child : String(child))));
  return node;
}

export const h = (tag, attributes = {}, ...children) => build(document.createElement(tag), attributes, children);
export const s = (tag, attributes = {}, ...children) => build(document.createElementNS(SVG, tag), attributes, children);
export const byId = (id) => document.getElementById(id);

export function setText(node, text) {
  if (node && node.textContent !== text) node.textContent = text;
}

export function state(name, text = name) {
  const kind = { online: "", placeable: "" }[name] ?? name;
  return h("span", { class: "state" }, h("span", { class: `dot ${kind}` }), text);
}

export function bar(is, of) {
  const share = of > 0 ? Math.min(100, (100 * is) / of) : 0;
  return s("svg", { class: "bar", viewBox: "0 0 100 6", preserveAspectRatio: "none", role: "img", "aria-label": `${share.toFixed(0)} %` },
    s("rect", { class: "of", width: 100, height: 6 }), s("rect", { class: "is", width: share.toFixed(2), height: 6 }));
}

// Runs `work` at most once per frame and `every_ms`, and less often where it takes long: most of the time must be
// left for whoever uses the page.
export function perFrame(work, every_ms = 0) {
  let asked = false;
  let next = -Infinity;
  const run = () => {
    asked = false;
    const begun = performance.now();
    work();
    next = begun + (every_ms ? Math.max(every_ms, 6 * (performance.now() - begun)) : 0);
  };
  return () => {
    if (asked) return;
    asked = true;
    const wait_ms = next - performance.now();
    if (wait_ms > 0) setTimeout(() => requestAnimationFrame(run), wait_ms);
    else requestAnimationFrame(run);
  };
}
