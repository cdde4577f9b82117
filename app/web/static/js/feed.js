// Keeps a page in step with the fleet: a snapshot, then the changes after its version, as server-sent events.
// When the stream breaks it resumes where it was; when that fails too it asks for snapshots, further and further
// apart, until the stream is back.

const SILENT_AFTER_MS = 45_000;
const LONGEST_WAIT_MS = 15_000;

// The lines of an event stream as events; comments only show that the server is there.
export async function* readEvents(body, heard) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let event = { data: "" };
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    heard();
    const lines = (rest + value).split(/\r\n|\n|\r/);
    rest = lines.pop();
    for (const line of lines) {
      if (line === "") {
        if (event.data) yield event;
        event = { data: "" };
      } else if (!line.startsWith(":")) {
        const at = line.indexOf(":");
        const [name, text] = at < 0 ? [line, ""] : [line.slice(0, at), line.slice(at + 1).replace(/^ /, "")];
        if (name === "data") event.data += (event.data ? "\n" : "") + text;
        else event[name] = text;
      }
    }
  }
}

export class Feed {
  // load(): asks for a snapshot, applies it and returns its version, "0-0" where there is no feed to follow.
  // change(change): applies one change. show(state, heard_ms): live, polling or away.
  constructor({ load, change, show, query = "" }) {
    Object.assign(this, { load, change, show, query });
    this.version = null;
    this.heard_ms = 0;
    this.failures = 0;
    this.wake = () => {};
  }

  start() {
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) this.wake();
    });
    addEventListener("online", () => this.wake());
    this.run();
  }

  async run() {
    for (;;) {
      const error = await this.round().then(() => null, (caught) => caught);
      if (error !== null && error.name !== "AbortError" && !(error instanceof TypeError) && error.status === undefined && !(error instanceof SyntaxError)) throw error;
      this.failures += 1;
      const reachable = error === null || error.status !== undefined;
      // The first break is most often a restart or an idle timeout: nobody needs to be told of it.
      if (this.failures > 1 || !reachable) this.show(reachable ? "polling" : "away", this.heard_ms);
      await this.pause();
      if (this.failures > 1) this.version = null;
    }
  }

  async round() {
    if (this.version === null) {
      const version = await this.load();
      this.heard();
      if (version === "0-0") {
        this.show("polling", this.heard_ms);
        throw Object.assign(new Error("no feed to follow"), { status: 503 });
      }
      this.version = version;
    }
    await this.follow();
  }

  async follow() {
    const aborted = new AbortController();
    const watchdog = setInterval(() => {
      if (Date.now() - this.heard_ms > SILENT_AFTER_MS) aborted.abort();
    }, 5000);
    try {
      const headers = { Accept: "text/event-stream", "Last-Event-ID": this.version };
      const response = await fetch(`/api/v1/events${this.query}`, { headers, cache: "no-store", signal: aborted.signal });
      if (!response.ok) throw Object.assign(new Error("no stream"), { status: response.status });
      this.heard();
      this.failures = 0;
      this.show("live", this.heard_ms);
      for await (const event of readEvents(response.body, () => this.heard())) {
        const change = JSON.parse(event.data);
        if (event.event === "reset" || change.kind === "reset" || change.kind === "rebuild") {
          this.version = null;
          return;
        }
        this.change(change);
        this.version = event.id ?? this.version;
      }
    } finally {
      clearInterval(watchdog);
      aborted.abort();
    }
  }

  heard() {
    this.heard_ms = Date.now();
  }

  pause() {
    const wait_ms = Math.min(LONGEST_WAIT_MS, 250 * 2 ** Math.min(this.failures, 8)) * (0.75 + Math.random() / 2);
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, wait_ms);
      this.wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }
}
