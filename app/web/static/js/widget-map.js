// The fleet map in a frame: as on the dashboard, live through the feed.

import { byId, h, perFrame, setText, state } from "./dom.js";
import { Feed } from "./feed.js";
import { Fleet } from "./fleet.js";
import { amount, count, plural } from "./format.js";
import { FleetMap } from "./map.js";
import { data } from "./page.js";

const fleet = new Fleet();
const { vram, cores, type, pool } = data.ask;
const within = (agent) => agent.type === type && (!pool || agent.pool === pool);
const fits = (agent) => agent.placeable && agent.vram >= vram && agent.cores >= cores && within(agent);

const map = new FleetMap(byId("map"), {
  pick: (agent) => window.open(`/agents/${agent.id}`, "_blank", "noopener"),
  describe: (agent) => [h("b", {}, agent.host || agent.id), state(agent.state), h("br"), `${amount(agent.vram)} GB, ${plural(agent.cores, "core")} free`],
});

const draw = perFrame(() => {
  const agents = fleet.order.filter(within);
  const most = agents.reduce((sum, agent) => ({ vram: Math.max(sum.vram, agent.vram), cores: Math.max(sum.cores, agent.cores) }), { vram: 8, cores: 4 });
  map.set(agents, { vram, cores, most, candidate: (agent) => agent.placeable, version: fleet.changes });
  setText(byId("label"), `${count(agents.filter(fits).length)} of ${plural(agents.length, "agent")} ${vram > 0 || cores > 1 ? "fit" : "placeable"}`);
}, 100);

new Feed({
  load: async () => {
    const version = await fleet.load(draw);
    draw();
    return version;
  },
  change: (change) => {
    fleet.apply(change);
    draw();
  },
  show: (state) => {
    byId("away-note").hidden = state !== "away";
  },
}).start();
