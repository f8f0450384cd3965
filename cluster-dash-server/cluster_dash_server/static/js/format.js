// Numbers into words, once for all scripts: what `web/words.py` does on the server. Unknown (null) is always "–".

export const DASH = "–";
export const GLYPHS = {
  down: "✕",
  stale: "▧",
  error: "!",
  drained: "⊘",
  held: "◐",
  busy: "■",
  unknown: "?",
  free: "◇",
};
/** All states, worst first. */
export const STATES = Object.keys(GLYPHS);
const MIB_PER_GIB = 1024;
const MIB_PER_TIB = 1024 * 1024;

/** @param {unknown} value */
export const known = (value) => typeof value === "number";

/** Round half up: 61. */
export const whole = (value) => (known(value) ? String(Math.floor(value + 0.5)) : DASH);

/** One decimal below 10: 0.4, 22, 0. */
export function short(value) {
  if (!known(value)) return DASH;
  const tenths = Math.floor(value * 10 + 0.5);
  return tenths >= 100 || tenths === 0 ? whole(value) : (tenths / 10).toFixed(1);
}

export const percent = (value) => (known(value) ? `${whole(value)} %` : DASH);

/** 2^20 bytes as a number of 2^30 bytes. */
export const gib = (mib) => (known(mib) ? short(mib / MIB_PER_GIB) : DASH);

/** 2^20 bytes in the unit that fits: 61 GiB, 2.0 TiB. */
export function amount(mib) {
  if (!known(mib)) return DASH;
  return mib < MIB_PER_TIB ? `${gib(mib)} GiB` : `${short(mib / MIB_PER_TIB)} TiB`;
}

/** Two amounts in 2^20 bytes: 61 of 80 GiB, 28 of 40 TiB, 61 GiB of 2.0 TiB. */
export function usedOf(used, total) {
  const [part, whole] = [amount(used), amount(total)];
  if (whole === DASH) return part === DASH ? DASH : `${part} of ${DASH}`;
  const unit = whole.slice(-" GiB".length);
  return `${part.endsWith(unit) ? part.slice(0, -unit.length) : part} of ${whole}`;
}

/** A part in percent of its whole; null where either is unknown or the whole is nothing. */
export const share = (part, total) =>
  known(part) && known(total) && total !== 0 ? Math.min(100, Math.max(0, (100 * part) / total)) : null;

/** The word for a percentage that is bad when full (CPU, memory of a host, disk). */
export function level(value) {
  if (!known(value) || value < 85) return "";
  return value >= 95 ? "full" : "high";
}

/** 312 W */
export const unit = (value, name) => (known(value) ? `${whole(value)} ${name}` : DASH);

/** A stretch of time in its largest fitting unit: 4 s, 6 min, 5 h, 3 d. */
export function age(seconds) {
  if (!known(seconds)) return DASH;
  const past = Math.max(0, Math.floor(seconds));
  if (past >= 2 * 86400) return `${Math.floor(past / 86400)} d`;
  if (past >= 3600) return `${Math.floor(past / 3600)} h`;
  if (past >= 60) return `${Math.floor(past / 60)} min`;
  return `${past} s`;
}

/** A moment (Unix s) as the viewer's clock shows it: 12:03:10. */
export const clock = (at) => new Date(at * 1000).toLocaleTimeString("en-GB");

/** A moment as the viewer's clock shows it, with its day where that is another one than that of now; null: no moment. */
export function moment(at, now) {
  const then = new Date(at * 1000);
  if (Number.isNaN(then.getTime())) return null;
  const time = then.toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });
  if (then.toDateString() === new Date(now * 1000).toDateString()) return time;
  return `${then.toLocaleDateString("en-GB", { day: "numeric", month: "short" })} ${time}`;
}

export const plural = (count, word) => (count === 1 ? `1 ${word}` : `${count} ${word}s`);

/** Cut a text from a snapshot to so many characters. */
export function cut(text, length = 160) {
  const characters = [...text];
  return characters.length <= length ? text : `${characters.slice(0, length - 1).join("")}…`;
}

/** What sorts host names as people count: gpu2 before gpu10. */
export const natural = (host) => host.replace(/[0-9]+/g, (digits) => digits.padStart(12, "0"));

/** Compare as Python does: by code units, not by a language's rules. */
export const compare = (one, other) => (one < other ? -1 : one > other ? 1 : 0);
