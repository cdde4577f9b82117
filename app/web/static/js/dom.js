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

// Runs `work` at most once per frame, however often it is asked for; `every_ms` makes it rarer.
export function perFrame(work, every_ms = 0) {
  let asked = false;
  let last = -Infinity;
  const run = () => {
    asked = false;
    last = performance.now();
    work();
  };
  return () => {
    if (asked) return;
    asked = true;
    const wait_ms = last + every_ms - performance.now();
    if (wait_ms > 0) setTimeout(() => requestAnimationFrame(run), wait_ms);
    else requestAnimationFrame(run);
  };
}
