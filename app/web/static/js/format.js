// Figures as people read them.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const tenths = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const day = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });

export const count = (number) => whole.format(number);
export const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;
export const amount = (gb) => tenths.format(gb);
export const gb = (value) => (value >= 10_240 ? `${tenths.format(value / 1024)} TB` : `${value >= 1000 ? whole.format(value) : tenths.format(value)} GB`);
// On the axis of a chart: one unit for all of it, and round numbers of that unit.
gb.axis = (most) => (most >= 2048 ? { unit: 1024, show: (value) => `${tenths.format(value / 1024)} TB` } : { unit: 1, show: gb });
export const time = (ms) => clock.format(ms);
export const moment = (ms) => (Date.now() - ms < 18 * 3_600_000 ? clock.format(ms) : day.format(ms));
export const percent = (share) => `${tenths.format(share)} %`;

export function span(seconds) {
  const past = Math.max(0, Math.round(seconds));
  if (past < 90) return `${past} s`;
  if (past < 5400) return `${Math.round(past / 60)} min`;
  if (past < 129_600) return `${Math.round(past / 3600)} h`;
  return `${Math.round(past / 86_400)} d`;
}

export const wants = (task) => {
  const parts = [];
  if (task.vram) parts.push(`${amount(task.vram)} GB VRAM`);
  if (task.cores) parts.push(plural(task.cores, "core"));
  if (task.memory) parts.push(`${amount(task.memory)} GB memory`);
  return parts.join(", ") || "anything";
};

// A word for the shell: as it is where it is harmless, in single quotes otherwise.
export const shellWord = (text) => (/^[\w.,:/@%+-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
