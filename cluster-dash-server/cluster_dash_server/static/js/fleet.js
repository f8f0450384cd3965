// Many hosts on one page: their order, the part that is shown, and groups of them. `web/fleet.py` in the browser.

import { count, isPast } from "./cluster.js";
import { STATES, compare, cut, known, natural } from "./format.js";

const TOP_USERS = 3;
const MOST_GROUPS = 100;
export const WORST = "worst";

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const onAny = (host) => new Set(host.gpus.flatMap((gpu) => Object.keys(gpu.users ?? {})));

function busy(host) {
  const values = host.gpus.filter((gpu) => gpu.gpu_util !== null && !isPast(gpu)).map((gpu) => gpu.gpu_util);
  return values.length ? mean(values) : null;
}

function memory(host) {
  const telling = host.gpus.filter((gpu) => !isPast(gpu) && known(gpu.used_mem) && known(gpu.total_mem));
  const sum = (name) => telling.reduce((total, gpu) => total + gpu[name], 0);
  return sum("total_mem") ? sum("used_mem") / sum("total_mem") : null;
}

/** What hosts can be put in order by, and whether the largest comes first at first. */
const SORTS = {
  host: [(host) => host.name, false],
  state: [(host) => host.worst, false],
  model: [(host) => host.gpus[0]?.model.toLowerCase() ?? null, false],
  free: [(host) => (host.gpus.length ? count(host.gpus, (gpu) => gpu.state === "free") : null), true],
  users: [(host) => onAny(host).size, true],
  busy: [busy, true],
  mem: [memory, true],
  cpu: [(host) => host.cpu_percent, true],
  load: [(host) => host.load_avg_1, true],
  seen: [(host) => -host.last_at, true],
};

const compareKeys = (one, other) =>
  Array.isArray(one) ? one[0] - other[0] || one[1] - other[1] : compare(one, other);

/**
 * Put hosts in order: by what is wrong, by a column, or by its reverse, `-free`; what is not known comes last.
 * @param {import("./cluster.js").Host[]} hosts by name
 */
export function order(hosts, sort) {
  const [key] = SORTS[sort.replace(/^-/, "")] ?? SORTS.state;
  const sign = sort.startsWith("-") ? -1 : 1;
  const keyed = hosts.map((host) => ({ host, value: key(host) }));
  const unknown = keyed.filter(({ value }) => value === null);
  return keyed
    .filter(({ value }) => value !== null)
    .sort((one, other) => sign * compareKeys(one.value, other.value))
    .concat(unknown)
    .map(({ host }) => host);
}

/** The order that a click on a column gives: its useful end first, then the other, then the usual order. */
export function nextSort(name, sort) {
  const [first, other] = SORTS[name][1] ? [`-${name}`, name] : [name, `-${name}`];
  return sort === first ? other : sort === other ? WORST : first;
}

/**
 * Choose the part of a list that an address asks for.
 * @param {{size: number, atOnce: number}} limits
 * @returns {{number: number, pages: number, first: number, last: number, total: number}} rows counted from 1
 */
export function page(total, asked, { size, atOnce }) {
  if (total <= atOnce) return { number: 1, pages: 1, first: Math.min(1, total), last: total, total };
  const pages = Math.ceil(total / size);
  const wished = /^[0-9]{1,6}$/.test(asked) ? Number(asked) : 1;
  const number = Math.min(Math.max(1, wished), pages);
  return { number, pages, first: (number - 1) * size + 1, last: Math.min(total, number * size), total };
}

const GROUPINGS = {
  model: (host, gpu) => [gpu.model],
  part: (host) => (host.partitions.length ? host.partitions : [""]),
  state: (host, gpu) => [gpu.state],
};

/**
 * Group the GPUs of hosts, the largest group first; states in their own order.
 * @param {import("./cluster.js").Host[]} hosts
 * @param {string} by a name of GROUPINGS
 * @returns {{name: string, hosts: number, gpus: number, free: number, bar: [string, number, number][], users: string}[]}
 */
export function groups(hosts, by) {
  const found = new Map();
  for (const host of hosts) {
    for (const gpu of host.gpus) {
      for (const name of GROUPINGS[by](host, gpu)) {
        if (!found.has(name)) found.set(name, { name, gpus: 0, on: new Set(), states: new Map(), who: new Map() });
        const group = found.get(name);
        group.gpus += 1;
        group.on.add(host.host);
        group.states.set(gpu.state, (group.states.get(gpu.state) ?? 0) + 1);
        for (const user in gpu.users) group.who.set(user, (group.who.get(user) ?? 0) + 1);
      }
    }
  }
  const bySize = (one, other) =>
    Number(one.name === "") - Number(other.name === "") ||
    other.gpus - one.gpus ||
    compare(natural(one.name), natural(other.name));
  const byState = (one, other) => STATES.indexOf(other.name) - STATES.indexOf(one.name);
  return [...found.values()].sort(by === "state" ? byState : bySize).slice(0, MOST_GROUPS).map(told);
}

function told({ name, gpus, on, states, who }) {
  const top = [...who].sort(([one, many], [other, more]) => more - many || compare(one, other));
  const said = top.slice(0, TOP_USERS).map(([user, number]) => `${cut(user, 32)} ×${number}`);
  const more = top.length - TOP_USERS;
  return {
    name,
    hosts: on.size,
    gpus,
    free: states.get("free") ?? 0,
    bar: [...STATES].reverse().filter((state) => states.has(state)).map((state) => [state, states.get(state)]),
    users: said.join(", ") + (more > 0 ? ` and ${more} more` : ""),
  };
}
