// The map: each agent a mark at its free VRAM and free cores, coloured by state, as large as its total VRAM.
// Both scales are logarithmic from 0, so that laptops and servers of one fleet find room on the same map.

import { colours, onTheme } from "./page.js";

const MARGIN = { left: 44, right: 14, top: 12, bottom: 32 };
const VRAM_TICKS = [0, 1, 2, 4, 8, 12, 16, 24, 32, 48, 80, 128, 192, 288, 512, 1024, 4096];
const CORE_TICKS = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096, 16384, 65536];
const SIZES = [2, 2.75, 3.5, 4.5, 5.5];
const SIZE_STEPS = [10, 20, 40, 100];
const STATES = ["offline", "busy", "cordoned", "online"];

const DIM = 0.16;
const EDGE = 1;

const scale = (value) => Math.log2(1 + value);
const sizeOf = (agent) => SIZE_STEPS.filter((step) => agent.vramTotal >= step).length;

export class FleetMap {
  // pick(agent): a mark was clicked. describe(agent): nodes for the tip.
  constructor(root, { pick, describe }) {
    this.root = root;
    this.canvas = root.querySelector("canvas");
    this.tip = root.querySelector(".tip");
    this.context = this.canvas.getContext("2d");
    this.agents = [];
    this.need = { vram: 0, cores: 1 };
    this.candidate = () => true;
    this.chosen = null;
    this.moving = false;
    this.version = 0;
    this.inked = 0;
    this.most = { vram: 24, cores: 16 };
    this.describe = describe;
    this.ink();
    onTheme(() => {
      this.ink();
      this.draw();
    });
    new ResizeObserver(() => {
      this.resize();
      this.draw();
    }).observe(root);
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("pointerleave", () => this.point(null));
    this.canvas.addEventListener("click", (event) => {
      const agent = this.at(event.offsetX, event.offsetY);
      if (agent) pick(agent);
    });
    this.resize();
  }

  resize() {
    this.ratio = Math.min(2, devicePixelRatio || 1);
    this.width = this.root.clientWidth;
    this.height = this.root.clientHeight;
    this.canvas.width = Math.round(this.width * this.ratio);
    this.canvas.height = Math.round(this.height * this.ratio);
    this.ink();
  }

  // Marks are drawn once per state and size; the map then only copies them.
  ink() {
    const colour = colours();
    this.colour = { line: colour("line"), text: colour("muted"), fit: colour("fit"), accent: colour("accent") };
    const ratio = this.ratio ?? 1;
    this.inked += 1;
    this.marks = {};
    for (const state of STATES) {
      this.marks[state] = SIZES.map((radius) => {
        const side = Math.ceil((radius + 1.5) * 2 * ratio);
        const mark = document.createElement("canvas");
        mark.width = mark.height = side;
        const context = mark.getContext("2d");
        context.beginPath();
        const hollow = state === "cordoned";
        context.arc(side / 2, side / 2, (hollow ? radius - 0.5 : radius) * ratio, 0, 2 * Math.PI);
        context.globalAlpha = state === "offline" ? 0.55 : 0.85;
        if (hollow) {
          context.strokeStyle = colour("mark-cordoned");
          context.lineWidth = 1.6 * ratio;
          context.stroke();
        } else {
          context.fillStyle = colour(`mark-${state}`);
          context.fill();
        }
        return mark;
      });
    }
  }

  // `candidate` says which agents could fit at all; of these, the ones right of and above the threshold do.
  // `chosen` picks agents by anything else instead. `version` changes with the agents. While the threshold is
  // being moved, `moving`, the map is cut along it, marks and all; at rest each mark is bright or dim as a whole.
  set(agents, { vram, cores, most, candidate, chosen = null, moving = false, version }) {
    this.agents = agents;
    this.need = { vram, cores };
    this.candidate = candidate;
    this.chosen = chosen;
    this.moving = moving && !chosen;
    this.most = most;
    this.version = version;
    this.draw();
  }

  fits(agent) {
    return this.chosen ? this.chosen(agent) : this.candidate(agent) && agent.vram >= this.need.vram && agent.cores >= this.need.cores;
  }

  x(vram) {
    return MARGIN.left + ((this.width - MARGIN.left - MARGIN.right) * scale(vram)) / (scale(this.most.vram) + 0.35);
  }

  y(cores) {
    return this.height - MARGIN.bottom - ((this.height - MARGIN.top - MARGIN.bottom) * scale(cores)) / (scale(this.most.cores) + 0.35);
  }

  // Where a mark's middle is. The scatter only goes up and right, so a mark that fits is never drawn outside.
  place(agent) {
    const x = this.x(agent.vram) + 1 + agent.dx * (agent.vram < 0.05 ? (this.x(1) - this.x(0)) * 0.3 : 3);
    const low = this.y(agent.cores);
    return [x, low - 1 - agent.dy * Math.min(26, (low - this.y(agent.cores + 1)) * 0.8)];
  }

  draw() {
    const { context, ratio } = this;
    if (!this.width || !this.height) return;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, this.width, this.height);
    this.axes();
    const [others, candidates] = this.layers();
    context.globalAlpha = DIM;
    this.stamp(others);
    if (!this.moving) {
      context.globalAlpha = 1;
      this.stamp(candidates);
    } else {
      // Moving the threshold moves a clip, and no mark is drawn anew.
      const [x, y] = [this.x(this.need.vram) - EDGE, this.y(this.need.cores) + EDGE];
      const inside = new Path2D();
      inside.rect(x, -1, this.width - x + 1, y + 1);
      const outside = new Path2D(inside);
      outside.rect(-1, -1, this.width + 2, this.height + 2);
      this.stamp(candidates, outside);
      context.globalAlpha = 1;
      this.stamp(candidates, inside);
    }
    context.globalAlpha = 1;
    this.threshold();
  }

  stamp(layer, clip) {
    const { context } = this;
    context.save();
    if (clip) context.clip(clip, "evenodd");
    context.drawImage(layer, 0, 0, this.width, this.height);
    context.restore();
  }

  // All marks on two pictures, the bright and the dim, drawn anew only when what they show has changed.
  layers() {
    const key = [this.version, this.width, this.height, this.ratio, this.most.vram, this.most.cores, this.inked, ...(this.moving ? [] : [this.need.vram, this.need.cores])].join(" ");
    if (this.drawn?.key !== key) {
      const chosen = this.moving ? this.candidate : (agent) => this.fits(agent);
      this.drawn = { key, pictures: [this.layer((agent) => !chosen(agent)), this.layer(chosen)] };
    }
    return this.drawn.pictures;
  }

  layer(wanted) {
    const picture = document.createElement("canvas");
    picture.width = this.canvas.width;
    picture.height = this.canvas.height;
    const context = picture.getContext("2d");
    for (const agent of this.agents) if (wanted(agent)) this.mark(agent, context);
    return picture;
  }

  mark(agent, context) {
    const mark = this.marks[agent.state][sizeOf(agent)];
    const [x, y] = this.place(agent);
    context.drawImage(mark, Math.round(x * this.ratio - mark.width / 2), Math.round(y * this.ratio - mark.width / 2));
  }

  axes() {
    const { context, width, height, colour } = this;
    context.strokeStyle = colour.line;
    context.fillStyle = colour.text;
    context.lineWidth = 1;
    context.font = "11px system-ui, sans-serif";
    context.textAlign = "center";
    context.beginPath();
    let last = -100;
    for (const tick of VRAM_TICKS) {
      const x = Math.round(this.x(tick)) + 0.5;
      if (x > width - MARGIN.right || x - last < 30) continue;
      last = x;
      context.moveTo(x, MARGIN.top);
      context.lineTo(x, height - MARGIN.bottom);
      context.fillText(String(tick), x, height - MARGIN.bottom + 14);
    }
    context.textAlign = "right";
    last = Infinity;
    for (const tick of CORE_TICKS) {
      const y = Math.round(this.y(tick)) + 0.5;
      if (y < MARGIN.top || last - y < 14) continue;
      last = y;
      context.moveTo(MARGIN.left, y);
      context.lineTo(width - MARGIN.right, y);
      context.fillText(String(tick), MARGIN.left - 7, y + 4);
    }
    context.stroke();
    context.textAlign = "right";
    context.fillText("free VRAM (GB)", width - MARGIN.right, height - 4);
    context.save();
    context.translate(11, MARGIN.top);
    context.rotate(-Math.PI / 2);
    context.fillText("free cores", 0, 0);
    context.restore();
  }

  threshold() {
    const { context, width, height, colour } = this;
    const x = Math.min(this.x(this.need.vram), width);
    const y = Math.max(this.y(this.need.cores), 0);
    context.fillStyle = colour.fit;
    context.fillRect(x, MARGIN.top, width - MARGIN.right - x, y - MARGIN.top);
    context.strokeStyle = colour.accent;
    context.lineWidth = 1.5;
    context.beginPath();
    context.moveTo(x, MARGIN.top);
    context.lineTo(x, y);
    context.lineTo(width - MARGIN.right, y);
    context.stroke();
  }

  at(px, py) {
    let best = null;
    let least = 12 ** 2;
    for (const agent of this.agents) {
      const [x, y] = this.place(agent);
      const far = (x - px) ** 2 + (y - py) ** 2 + (this.fits(agent) ? 0 : 20);
      if (far < least) [best, least] = [agent, far];
    }
    return best;
  }

  point(event) {
    const agent = event && this.at(event.offsetX, event.offsetY);
    this.canvas.style.cursor = agent ? "pointer" : "";
    this.tip.hidden = !agent;
    if (!agent) return;
    this.tip.replaceChildren(...this.describe(agent));
    const [x, y] = this.place(agent);
    this.tip.style.left = `${Math.max(4, Math.min(x + 12, this.width - this.tip.offsetWidth - 4))}px`;
    this.tip.style.top = `${Math.max(4, y - this.tip.offsetHeight - 10)}px`;
  }
}
