// `/widgets/`: the gallery. Each widget lives in its own frame.

import { poll, showLink } from "./page.js";

poll(async () => {
  const response = await fetch("/livez");
  if (!response.ok) throw Object.assign(new Error("not alive"), { status: response.status });
}, { every_s: 10, show: showLink });
