// The only module that fetches.

const WAIT_MS = 10_000;

/** Where the site lives: "/" or "/dash/". */
export const base = document.documentElement.dataset.base;

export const hostLink = (host) => `${base}host/${encodeURIComponent(host)}`;
export const userLink = (user) => `${base}user/${encodeURIComponent(user)}`;

/** The server did not answer, or not with what was asked for. */
export class Lost extends Error {}

async function get(url, read, signal) {
  try {
    const answer = await fetch(url, {
      // ages are counted from the `at` of an answer: one from the browser's store would bring an old one
      cache: "no-store",
      signal: AbortSignal.any([signal, AbortSignal.timeout(WAIT_MS)]),
    });
    if (answer.ok) return await read(answer);
    throw new Lost(`status ${answer.status}`);
  } catch (error) {
    throw error instanceof Lost ? error : new Lost(String(error));
  }
}

/** What the overview draws, and what the GPU charts draw besides: with all columns the bytes would be five times as many. */
export const OVERVIEW = [
  ...["state", "state_count", "last_at", "cpu_percent", "num_cpus", "load_avg_1", "gpu_error", "gpu_note", "labels"],
  ...["drained", "partitions", "asks", "index", "model", "since", "gpu_util", "used_mem", "total_mem", "users", "error", "read_at", "slurm"],
];
export const CHARTS = [...OVERVIEW, "key", "temperature_c", "power_w"];
export const NAMES = ["model", "users"];

/**
 * The live view of the hosts that a filter means; with `since` only what changed after that version.
 * @param {string[]} columns
 * @param {string|null} since
 * @param {string} q
 * @returns {Promise<{version: string, at: number, full: boolean, gone: string[], summary: string,
 *   hosts: Object<string, any[]>, gpus: Object<string, any[]>, problems?: string[], matching?: Object, of?: Object}>}
 */
export const cluster = (columns, since, q, signal) =>
  get(`${base}api/v1/cluster${query({ columns: columns.join(","), q, since })}`, (answer) => answer.json(), signal);

/**
 * What a filter leaves to choose from.
 * @returns {Promise<{facets: Object<string, {value: string, count: number, chosen: boolean, q: string}[]>,
 *   more: Object<string, number>}>}
 */
export const facets = (q, signal) => get(`${base}api/v1/facets${query({ q })}`, (answer) => answer.json(), signal);

/**
 * History of a figure, in steps.
 * @param {Object<string, string>} wish `metric`, `host`, `gpu`, `user`, `from`, `to`, `step`
 * @returns {Promise<{series: {host: string, gpu: number|null, t: number[], mean: (number|null)[]}[]}>}
 */
export const series = (wish, signal) => get(`${base}api/v1/series${query(wish)}`, (answer) => answer.json(), signal);

const xidsOf = (q, format) => `${base}api/v1/events${query({ kind: "xid", from: "now-1d", q, format })}`;

/** The Xids of the last day, newest first. @returns {Promise<{at: number, events: Object<string, any>[]}>} */
export const xids = (q, signal) => get(xidsOf(q), (answer) => answer.json(), signal);
export const xidsAsCsv = (q) => xidsOf(q, "csv");

/** The alerts that nobody has taken on. @returns {Promise<{at: number, alerts: Object<string, any>[]}>} */
export const openAlerts = (signal) => get(`${base}api/v1/alerts${query({ state: "firing" })}`, (answer) => answer.json(), signal);

function query(parameters) {
  const said = Object.entries(parameters).filter(([, value]) => value);
  return said.length ? `?${said.map(([name, value]) => `${name}=${encodeURIComponent(value)}`).join("&")}` : "";
}

/** This very page as the server would draw it now; nothing in it runs. */
export async function page(signal) {
  const text = await get(location.href.split("#")[0], (answer) => answer.text(), signal);
  return new DOMParser().parseFromString(text, "text/html");
}
