// The only module that fetches.

const WAIT_MS = 10_000;

/** Where the site lives: "/" or "/dash/". */
export const base = document.documentElement.dataset.base;

export const hostLink = (host) => `${base}host/${encodeURIComponent(host)}`;

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
 * The live view; with `since` only what changed after that version.
 * @returns {Promise<{version: string, at: number, full: boolean, gone: string[], summary: string,
 *   hosts: Object<string, any[]>, gpus: Object<string, any[]>}>}
 */
export async function cluster(since, signal) {
  const query = since === null ? "" : `?since=${encodeURIComponent(since)}`;
  return get(`${base}api/v1/cluster${query}`, (answer) => answer.json(), signal);
}

/** This very page as the server would draw it now; nothing in it runs. */
export async function page(signal) {
  const text = await get(location.href.split("#")[0], (answer) => answer.text(), signal);
  return new DOMParser().parseFromString(text, "text/html");
}
