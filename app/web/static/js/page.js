// What every page has: theme, lines to copy, the state of the connection, the data it was served with.

import { byId, h, setText } from "./dom.js";
import { time } from "./format.js";

export const data = JSON.parse(byId("page-data").textContent);

const THEMES = ["", "light", "dark"];
const NAMES = { "": "System", light: "Light", dark: "Dark" };
const themeListeners = [];

function setTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  setText(byId("theme"), NAMES[theme]);
  for (const listener of themeListeners) listener();
}

function stored(key) {
  try {
    return localStorage.getItem(key) ?? "";
  } catch {
    return ""; // storage is switched off
  }
}

function store(key, value) {
  try {
    localStorage.setItem(key, value);
  } catch {
    // storage is switched off; the choice holds for this page only
  }
}

export const remembered = stored;
export const remember = store;

export function onTheme(listener) {
  themeListeners.push(listener);
}

export function colours() {
  const style = getComputedStyle(document.documentElement);
  return (name) => style.getPropertyValue(`--${name}`).trim();
}

function initTheme() {
  if (!byId("theme")) return; // a widget looks as its address says, or as the system does
  let theme = THEMES.includes(stored("headroom-theme")) ? stored("headroom-theme") : "";
  setTheme(theme);
  byId("theme").addEventListener("click", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    store("headroom-theme", theme);
    setTheme(theme);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => setTheme(theme));
}

export function setLine(name, text) {
  setText(document.querySelector(`[data-line="${name}"]`), text);
}

async function copy(button) {
  const code = document.querySelector(`[data-line="${button.dataset.copy}"]`);
  try {
    await navigator.clipboard.writeText(code.textContent);
  } catch {
    getSelection().selectAllChildren(code); // no clipboard without a secure context
    document.execCommand("copy");
  }
  setText(button, "Copied");
  setTimeout(() => setText(button, "Copy"), 1200);
}

// `since_ms`: when the server was last heard.
export function showLink(state, since_ms) {
  const pill = byId("link-state");
  if (pill.dataset.state !== state) {
    pill.dataset.state = state;
    setText(pill, { live: "live", polling: "polling", away: "API away", connecting: "connecting" }[state]);
  }
  const banner = byId("away");
  banner.hidden = state !== "away";
  if (state === "away") {
    const since = since_ms ? ` What you see is from ${time(since_ms)}.` : "";
    banner.replaceChildren(h("b", {}, "The API does not answer."), `${since} Trying again…`);
  }
}

// A call of the API; rejects with the problem's detail.
export const call = async (path, options) => (await callPage(path, options)).body;

// The same with what its headers say: how many there are in all, and where the next page is, null at the end.
export async function callPage(path, options = {}) {
  const response = await fetch(path, { cache: "no-store", ...options });
  const text = await response.text();
  const body = text ? JSON.parse(text) : null;
  if (!response.ok) {
    const error = new Error(body?.errors?.map((one) => `${one.field}: ${one.message}`).join(", ") || body?.detail || response.statusText);
    error.status = response.status;
    error.code = body?.code;
    throw error;
  }
  const next = /^<([^>]*)>; rel="next"$/.exec(response.headers.get("link") ?? "");
  return { body, total: Number(response.headers.get("x-total-count") ?? NaN), next: next && next[1] };
}

// Asks again and again while the page is looked at: `every_s` apart, further while there is no answer.
export function poll(ask, { every_s, show }) {
  let failures = 0;
  let timer = 0;
  let heard_ms = Date.now();
  const round = async () => {
    clearTimeout(timer);
    if (document.hidden) return;
    try {
      await ask();
      failures = 0;
      heard_ms = Date.now();
      show?.("live", heard_ms);
    } catch (error) {
      if (!(error instanceof TypeError) && error.status === undefined && error.name !== "TimeoutError" && !(error instanceof SyntaxError)) throw error;
      failures += 1;
      show?.(error.status === undefined ? "away" : "polling", heard_ms);
    }
    timer = setTimeout(round, 1000 * Math.min(15, failures ? Math.min(every_s, 1) * 2 ** Math.min(failures, 6) * (0.75 + Math.random() / 2) : every_s));
  };
  document.addEventListener("visibilitychange", round);
  round();
  return round;
}

initTheme();
setLine("Address", location.href);
document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-copy]");
  if (button) copy(button);
});
