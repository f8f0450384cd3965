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

/**
 * The live view of the hosts that a filter means; with `since` only what changed after that version.
 * @param {string|null} since
 * @param {string} q
 * @returns {Promise<{version: string, at: number, full: boolean, gone: string[], summary: string,
 *   hosts: Object<string, any[]>, gpus: Object<string, any[]>, problems?: string[], matching?: Object, of?: Object}>}
 */
export const cluster = (since, q, signal) => get(`${base}api/v1/cluster${query({ q, since })}`, (answer) => answer.json(), signal);

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

function query(parameters) {
  const said = Object.entries(parameters).filter(([, value]) => value);
  return said.length ? `?${said.map(([name, value]) => `${name}=${encodeURIComponent(value)}`).join("&")}` : "";
}

/** This very page as the server would draw it now; nothing in it runs. */
export async function page(signal) {
  const text = await get(location.href.split("#")[0], (answer) => answer.text(), signal);
  return new DOMParser().parseFromString(text, "text/html");
}
