// What the overview says of each host: `web/rows.py` in the browser, from the columns of `api/v1/cluster`.
// A browser test holds the two to each other, cell by cell.

import { base, hostLink } from "./api.js";
import { here } from "./address.js";
import { count, isLastKnown, isMissing, isPast, isSilent } from "./cluster.js";
import { h } from "./dom.js";
import * as format from "./format.js";

const { DASH, GLYPHS, age, compare, cut, known, percent, plural, share, short, unit, usedOf, whole } =
  format;
const NAMED = 3;

// ------------------------------------------------------------------------------------------------- one row

/** @param {import("./cluster.js").Host} host @param {number} now */
export function hostRow(host, now) {
  const silent = isSilent(host);
  const lastOf = (figure) => lastKnown(figure, silent || host.gpus.every(isPast));
  const [glyph, headline] = badgeOf(host);
  const last = (figure) => lastKnown(figure, silent);
  const strip = host.gpus.length
    ? h("span", { class: "strip" }, ...host.gpus.map((gpu) => cell(host, gpu, now)))
    : h("span", { class: "no-gpu", title: noGpu(host) }, noGpu(host));
  return h(
    "tr",
    { role: "row", "data-key": host.host, "data-state": host.state ?? "none", "data-silent": silent ? "" : null },
    h("th", { role: "rowheader", scope: "row", class: "host" }, h("a", { href: hostLink(host.host) }, host.host)),
    h("td", { role: "cell", class: "state" }, badge(host.state ?? "none", glyph, headline)),
    figureCell("model", models(host.gpus)),
    h("td", { role: "cell", class: "gpus" }, strip),
    textCell("free", host.gpus.length ? String(count(host.gpus, (gpu) => gpu.state === "free")) : DASH),
    figureCell("users", users(host.gpus)),
    figureCell("busy", lastOf(busy(host.gpus))),
    figureCell("mem", lastOf(memory(host.gpus))),
    figureCell("cpu", last(cpu(host.cpu_percent, host.num_cpus))),
    figureCell("load", last(load(host.load_avg_1, host.num_cpus))),
    textCell("seen", age(now - host.last_at)),
  );
}

/** One row of the table below the GPU charts; the GPU as `Cluster.gpus` gives it. */
export function gpuRow(gpu) {
  const last = (figure) => lastKnown(figure, isLastKnown(gpu));
  const used = {
    text: usedOf(gpu.used_mem, gpu.total_mem),
    title: known(gpu.used_mem) ? "" : "memory: not reported",
    share: bar(share(gpu.used_mem, gpu.total_mem)),
  };
  const measured = (value, name, of) => ({ text: unit(value, name), title: value === null ? `${of}: not reported` : "" });
  return h(
    "tr",
    { "data-key": `${gpu.host}/${gpu.key}`, "data-silent": gpu.silent ? "" : null },
    h("th", { scope: "row", class: "host" }, h("a", { href: `${hostLink(gpu.host)}#gpu-${gpu.index}` }, gpu.host)),
    h("td", { class: "index" }, String(gpu.index)),
    h("td", { class: "state" }, badge(gpu.state, GLYPHS[gpu.state], gpu.state)),
    h("td", { class: "model" }, cut(gpu.model, 40)),
    plainFigureCell("users", users([gpu])),
    plainFigureCell("busy", last(busy([gpu]))),
    plainFigureCell("mem", last(used)),
    plainFigureCell("temperature", last(measured(gpu.temperature_c, "°C", "temperature"))),
    plainFigureCell("power", last(measured(gpu.power_w, "W", "power"))),
  );
}

const badge = (state, glyph, text) =>
  h("span", { class: "badge", "data-state": state }, h("span", { "aria-hidden": "true" }, glyph), ` ${text}`);

const textCell = (name, text) => h("td", { role: "cell", class: name }, text);
const figureCell = (name, figure) => withFigure(h("td", { role: "cell", class: name }), figure);
const plainFigureCell = (name, figure) => withFigure(h("td", { class: name }), figure);

/** `rest`: what follows the text and has no room in one line; see `Figure` in web/rows.py. */
function withFigure(td, { text, rest = [], title = "", share: full = null, level = "" }) {
  if (title) td.setAttribute("title", title);
  if (level) td.setAttribute("data-level", level);
  td.append(h("span", { class: "figure" }, ...(rest.length ? inOneLine(text, rest) : [text])));
  if (level) td.append(h("span", { class: "level" }, ` ${level}`));
  if (full !== null) td.append(h("span", { class: "bar", style: `--share:${full}%` }));
  return td;
}

const inOneLine = (text, rest) => [
  h("span", { class: "first" }, text),
  h("span", { class: "more", "aria-hidden": "true" }, ` +${rest.length}`),
  h("span", { class: "rest" }, `, ${rest.join(", ")}`),
];

function badgeOf({ state, state_count: counted }) {
  if (state === null) return [DASH, "no GPU"];
  return [GLYPHS[state], counted !== null && state !== "busy" ? `${counted} ${state}` : state];
}

function models(gpus) {
  const counts = tally(gpus.map((gpu) => gpu.model));
  if (counts.size < 2) return { text: cut(counts.keys().next().value ?? DASH, 40) };
  const text = [...counts].map(([name, number]) => `${number} × ${cut(name, 40)}`).join(", ");
  return { text, title: text };
}

function noGpu(host) {
  if (host.gpu_error !== null) return `cannot read its GPUs: ${cut(host.gpu_error)}`;
  if (host.gpu_note !== null) return `no GPU: ${cut(host.gpu_note)}`;
  return "no GPU";
}

/** All that a cell shows, and more, in words. */
export function cellLabel(host, gpu, now) {
  const parts = [`${host.host} GPU ${gpu.index}`, gpu.state];
  const on = usersOf(gpu);
  if (gpu.users === null) parts.push("processes not reported");
  else if (on.length) parts.push(named(on));
  parts.push(gpu.used_mem === null ? "memory not reported" : usedOf(gpu.used_mem, gpu.total_mem));
  const idle = gpu.state === "held" && gpu.since !== null ? ` for ${age(now - gpu.since)}` : "";
  parts.push(gpu.gpu_util === null ? "busy % not reported" : `busy ${percent(gpu.gpu_util)}${idle}`);
  if (isMissing(gpu)) parts.push(`missing for ${age(now - gpu.since)}`);
  else if (gpu.error !== null) parts.push(cut(gpu.error));
  if (gpu.read_at !== null) parts.push(`figures of ${age(now - gpu.read_at)} ago`);
  if (gpu.slurm !== null) parts.push(cut(gpu.slurm));
  return parts.join(", ");
}

const usersOf = (gpu) => mostFirst(Object.entries(gpu.users ?? {})).map(([user]) => user);

function cell(host, gpu, now) {
  const label = cellLabel(host, gpu, now);
  const on = usersOf(gpu);
  const who = on.length > 1 ? `${cut(on[0], 32)} +${on.length - 1}` : cut(on[0] ?? "", 32);
  const fill = gpu.state === "busy" && gpu.gpu_util !== null ? `--share:${whole(gpu.gpu_util)}%` : null;
  return h(
    "a",
    {
      class: "gpu",
      href: `${hostLink(host.host)}#gpu-${gpu.index}`,
      "data-state": gpu.state,
      "aria-label": label,
      title: label,
      "data-off": gpu.matches === false ? "" : null,
      style: fill,
    },
    h("span", { class: "glyph" }, GLYPHS[gpu.state]),
    ...(who ? [h("span", { class: "who" }, who)] : []),
  );
}

// -------------------------------------------------------------------------------------------------- figures

/** Put figures in brackets that do not say what is: those of a silent host, for one. They warn of nothing. */
function lastKnown(figure, silent) {
  if (!silent || figure.text === DASH) return figure;
  const title = figure.title ? `last known: ${figure.title}` : "last known";
  return { ...figure, text: `(${figure.text})`, title, level: "" };
}

function tally(list) {
  const counts = new Map();
  for (const each of list) counts.set(each, (counts.get(each) ?? 0) + 1);
  return counts;
}

const mostFirst = (entries) =>
  [...entries].sort(([one, many], [other, more]) => more - many || compare(one, other));

const named = (names) =>
  names.slice(0, NAMED).join(", ") + (names.length > NAMED ? ` and ${names.length - NAMED} more` : "");

function users(gpus) {
  const on = tally(gpus.flatMap((gpu) => Object.keys(gpu.users ?? {})));
  const unread = count(gpus, (gpu) => gpu.users === null);
  const said = mostFirst(on).map(([user, number]) => `${user} ×${number}`);
  const reason = unread ? `processes of ${plural(unread, "GPU")} not reported` : "";
  if (!said.length) return { text: unread || !gpus.length ? DASH : "none", title: reason };
  const every = said.length > 1 ? said.join(", ") : "";
  return { text: said[0], rest: said.slice(1), title: [every, reason].filter(Boolean).join("; ") };
}

const bar = (value) => (value === null ? null : whole(value));
const lacking = (some, all) => (some === all ? "" : `; ${some} of ${all} reporting`);

/** Those whose figures go into a sum: the ones that say what is, or all where none does. */
function fresh(gpus) {
  const current = gpus.filter((gpu) => !isPast(gpu));
  return current.length ? current : gpus;
}

function busy(gpus) {
  if (!gpus.length) return { text: DASH, title: "no GPU" };
  const values = fresh(gpus).map((gpu) => gpu.gpu_util).filter(known);
  if (!values.length) return { text: DASH, title: "busy %: not reported" };
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  const title = gpus.length === 1 ? "" : `mean of ${plural(values.length, "GPU")}${lacking(values.length, gpus.length)}`;
  return { text: percent(mean), title, share: bar(mean) };
}

function memory(gpus) {
  if (!gpus.length) return { text: DASH, title: "no GPU" };
  const telling = fresh(gpus).filter((gpu) => known(gpu.used_mem) && known(gpu.total_mem));
  const used = telling.reduce((sum, gpu) => sum + gpu.used_mem, 0);
  const total = telling.reduce((sum, gpu) => sum + gpu.total_mem, 0);
  const full = share(used, total);
  if (full === null) return { text: DASH, title: "memory: not reported" };
  const title = `${usedOf(used, total)} on ${plural(telling.length, "GPU")}${lacking(telling.length, gpus.length)}`;
  return { text: percent(full), title, share: bar(full) };
}

function cpu(value, cores) {
  if (value === null) return { text: DASH, title: "CPU: not reported" };
  return { text: percent(value), title: cores === null ? "" : `of ${plural(cores, "core")}`, level: format.level(value) };
}

function load(value, cores) {
  if (value === null) return { text: DASH, title: "load: not reported" };
  return { text: short(value), title: cores ? `1 min; ${short(value / cores)} a core, ${plural(cores, "core")}` : "1 min" };
}

// ------------------------------------------------------------------------------------------------- one group

/** @param {Object} group as `fleet.groups` gives it @param {string|null} q what shows it alone */
export function groupRow({ name, hosts, gpus, free, bar, users: on }, q) {
  const said = bar.map(([state, number]) => `${number} ${state}`).join(", ");
  const stack = bar.map(([state, number]) => h("span", { "data-state": state, style: `flex-grow:${number}` }));
  const number = (value) => h("td", { class: "number" }, String(value));
  return h(
    "tr",
    { "data-key": name },
    h("th", { scope: "row", class: "host" }, q === null ? "none" : h("a", { href: here({ q, group: "none" }) }, cut(name, 60))),
    ...[hosts, gpus, free].map(number),
    h("td", { class: "states" }, h("span", { class: "stack", role: "img", "aria-label": said, title: said }, ...stack)),
    h("td", { class: "users" }, on || "none"),
  );
}

// ------------------------------------------------------------------------------------------ above the table

/**
 * What needs attention, worst first.
 * @param {import("./cluster.js").Host[]} hosts by name
 * @returns {{state: string, text: string, href: string}[]}
 */
export function attention(hosts, now) {
  const notes = [];
  const all = (state) => here({ q: `state:${state}` });
  const together = (found, state, many) => {
    if (found.length <= NAMED) notes.push(...found.map(({ text, href }) => ({ state, text, href })));
    else notes.push({ state, text: `${found.length} ${many}: ${named(found.map(({ name }) => name))}`, href: all(state) });
  };
  for (const state of ["down", "stale"]) {
    const silent = hosts.filter((host) => host.state === state);
    const words = (host) => `${host.host} ${state} ${age(now - host.last_at)}`;
    together(
      silent.map((host) => ({ name: host.host, text: words(host), href: hostLink(host.host) })),
      state,
      `hosts ${state}`,
    );
  }
  const unreadable = hosts.filter((host) => !isSilent(host) && host.gpu_error !== null);
  together(
    unreadable.map((host) => ({ name: host.host, text: `${host.host} ${noGpu(host)}`, href: hostLink(host.host) })),
    "error",
    "hosts cannot read their GPUs",
  );
  const gpus = hosts.flatMap((host) => host.gpus.map((gpu) => ({ host, gpu })));
  notes.push(...brokenGpus(gpus.filter(({ gpu }) => gpu.state === "error"), now, all("error")));
  const shut = hosts.filter((host) => !isSilent(host) && host.drained !== null);
  together(
    shut.map((host) => ({ name: host.host, text: `${host.host} drained: ${cut(host.drained)}`, href: hostLink(host.host) })),
    "drained",
    "hosts drained",
  );
  const held = gpus.filter(({ gpu }) => gpu.state === "held");
  if (held.length) {
    const on = mostFirst(tally(held.flatMap(({ gpu }) => Object.keys(gpu.users ?? {}))));
    const said = on.map(([user, number]) => `${user} ${number}`);
    notes.push({ state: "held", text: `${held.length} held${said.length ? ` (${named(said)})` : ""}`, href: all("held") });
  }
  return notes;
}

/** A few broken GPUs one by one; of many those that fare alike in one line. */
function brokenGpus(gpus, now, everywhere) {
  const alone = ({ host, gpu }) => {
    const name = `${host.host} GPU ${gpu.index}`;
    const text = isMissing(gpu) ? `${name} missing for ${age(now - gpu.since)}` : `${name}: ${cut(gpu.error || "error")}`;
    return { state: "error", text, href: `${hostLink(host.host)}#gpu-${gpu.index}` };
  };
  if (gpus.length <= NAMED) return gpus.map(alone);
  const alike = new Map();
  for (const each of gpus) {
    const reason = isMissing(each.gpu) ? "missing" : cut(each.gpu.error || "error");
    if (!alike.has(reason)) alike.set(reason, []);
    alike.get(reason).push(each);
  }
  const groups = [...alike].sort(([, one], [, other]) => other.length - one.length).slice(0, NAMED);
  const notes = groups.map(([reason, found]) => {
    const on = [...new Set(found.map(({ host }) => host.host))];
    if (found.length === 1) return alone(found[0]);
    if (on.length === 1) return { state: "error", text: `${on[0]}, ${found.length} GPUs: ${reason}`, href: hostLink(on[0]) };
    return { state: "error", text: `${found.length} GPUs on ${on.length} hosts: ${reason} (${named(on)})`, href: everywhere };
  });
  const left = gpus.length - groups.reduce((sum, [, found]) => sum + found.length, 0);
  if (left) notes.push({ state: "error", text: `${plural(left, "more GPU")} in error`, href: everywhere });
  return notes;
}

/** @param {import("./cluster.js").Host[]} hosts */
export function stateCounts(hosts) {
  if (!counted.has(hosts)) counted.set(hosts, tally(hosts.flatMap((host) => host.gpus.map((gpu) => gpu.state))));
  return counted.get(hosts);
}

/** The counts of a list of hosts, which is a new one after each change. */
const counted = new WeakMap();

function wrong(hosts) {
  const ofHost = (host) =>
    isSilent(host) ? 1 : (host.gpu_error === null ? 0 : 1) + count(host.gpus, (gpu) => gpu.state === "error");
  return hosts.reduce((sum, host) => sum + ofHost(host), 0);
}

/** @param {import("./cluster.js").Host[]} hosts */
export function title(hosts, site) {
  const bad = wrong(hosts);
  const free = stateCounts(hosts).get("free") ?? 0;
  return (bad ? `(${bad}!) ` : "") + (hosts.length ? `${free} free ${DASH} ` : "") + site;
}

/** @param {import("./cluster.js").Host[]} hosts */
export function icon(hosts) {
  if (wrong(hosts)) return "error";
  const states = stateCounts(hosts);
  if (states.has("free")) return "free";
  return states.size ? "busy" : "none";
}

export const iconLink = (says) => `${base}icon.svg?says=${says}`;
