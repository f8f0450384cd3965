// Many names in one: gpu[01-03,07], as `hostlist.py` writes it.

import { compare, natural } from "./format.js";

/** @param {Iterable<string>} names */
export function compress(names) {
  const series = new Map();
  const sorted = [...new Set(names)]
    .map((name) => ({ name, order: natural(name) }))
    .sort((one, other) => compare(one.order, other.order) || compare(one.name, other.name))
    .map(({ name }) => name);
  for (const name of sorted) {
    const match = /[[\],\s]/.test(name) ? null : name.match(/^(.*?)([0-9]{1,15})([^0-9]*)$/s);
    const around = match === null ? name : `${match[1]}\0${match[3]}`; // no name holds a NUL
    if (!series.has(around)) series.set(around, []);
    if (match !== null) series.get(around).push(match[2]);
  }
  const parts = [...series].map(([around, numbers]) => {
    if (!numbers.length) return around;
    const [prefix, suffix] = around.split("\0");
    return prefix + (numbers.length === 1 ? numbers[0] : `[${runs(numbers)}]`) + suffix;
  });
  return parts.join(",");
}

/** Numbers as ranges: 01-03,07. A range counts on from its first number, filled up to that one's width. */
function runs(numbers) {
  const found = [];
  for (const number of numbers.sort((one, other) => one.length - other.length || compare(one, other))) {
    const run = found.at(-1);
    if (run && number === String(Number(run[1]) + 1).padStart(run[0].length, "0")) run[1] = number;
    else found.push([number, number]);
  }
  return found.map(([first, last]) => (first === last ? first : `${first}-${last}`)).join(",");
}
