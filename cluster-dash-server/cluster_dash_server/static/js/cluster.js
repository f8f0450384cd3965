// The live view as this browser holds it, merged from answers of `api/v1/cluster`.

import { compare, natural, STATES } from "./format.js";

const SILENT = ["down", "stale"];
const CALM = ["free", "busy", "unknown"];

export const isSilent = (host) => SILENT.includes(host.state);
/** Whether the snapshots of its host do not hold it any more. */
export const isMissing = (gpu) => gpu.since !== null && gpu.state !== "held" && gpu.state !== "free";
/** Whether its figures do not say what is: they are old, or those from before it was missing. */
export const isPast = (gpu) => gpu.read_at !== null || isMissing(gpu);
/** The same of a GPU as `Cluster.gpus` gives it, whose host may be silent. */
export const isLastKnown = (gpu) => gpu.silent || isPast(gpu);

/** @template T @param {T[]} list @param {(each: T) => boolean} test */
export const count = (list, test) => list.reduce((sum, each) => sum + (test(each) ? 1 : 0), 0);

/**
 * One host: the values of its columns by name, `gpus` (the same of each), and what puts it in order.
 * @typedef {Object<string, any> & {host: string, gpus: Object<string, any>[], name: string, worst: number[]}} Host
 */

/** The hosts that one filter means. */
export class Cluster {
  /** @param {string} q the filter */
  constructor(q = "") {
    this.q = q;
    /** @type {Map<string, Host>} */
    this.hosts = new Map();
    this.version = null;
    this.at = null;
    this.summary = null;
    this.understood = "";
    /** @type {string[]} what of the filter was not understood, in words */
    this.problems = [];
    /** @type {{hosts: number, gpus: number}|null} what the filter means, null without one */
    this.matching = null;
    this.of = null;
    this.sorted = null;
    this.fitting = null;
  }

  /** Take an answer of `api.cluster`. */
  merge(body) {
    this.at = body.at;
    if (!body.full && body.version === this.version) return; // nothing changed
    if (body.full) this.hosts.clear();
    for (const host of body.gone) this.hosts.delete(host);
    const changed = objects(body.hosts);
    for (const host of changed) host.gpus = [];
    for (const gpu of objects(body.gpus)) changed[gpu.host].gpus.push(gpu);
    for (const host of changed) this.hosts.set(host.host, placed(host));
    this.version = body.version;
    this.summary = body.summary;
    this.understood = body.q ?? "";
    this.problems = body.problems ?? [];
    this.matching = body.matching ?? null;
    this.of = body.of ?? null;
    this.sorted = null;
    this.fitting = null;
  }

  /** @returns {Host[]} by name, as people count */
  byName() {
    this.sorted ??= [...this.hosts.values()].sort((one, other) => compare(one.name, other.name));
    return this.sorted;
  }

  /** @returns {Host[]} by name, with those of their GPUs that the filter means */
  narrowed() {
    if (this.matching === null) return this.byName();
    this.fitting ??= this.byName().map((host) => ({ ...host, gpus: host.gpus.filter((gpu) => gpu.matches) }));
    return this.fitting;
  }

  /** @returns {Object[]} the GPUs that the filter means, by the name of their hosts */
  gpus() {
    return this.narrowed().flatMap((host) =>
      host.gpus.map((gpu) => ({ ...gpu, host: host.host, silent: isSilent(host) })),
    );
  }
}

/** Rows of columns. */
function objects(columns) {
  const names = Object.keys(columns);
  const rows = columns[names[0]].map(() => ({}));
  for (const name of names) {
    const column = columns[name];
    for (let place = 0; place < rows.length; place += 1) rows[place][name] = column[place];
  }
  return rows;
}

/** Say once a change what puts a host in order: what is wrong first, then the most free, then its name. */
function placed(host) {
  host.name = natural(host.host);
  const free = count(host.gpus, (gpu) => gpu.state === "free");
  const rank = CALM.includes(host.state) ? STATES.length : STATES.indexOf(host.state);
  host.worst = host.state === null ? [STATES.length + 1, 0] : [rank, -free];
  return host;
}
