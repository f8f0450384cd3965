// The overview: the live view of the API, drawn into the page that the server sent.

import * as api from "./api.js";
import { asked, here, listen } from "./address.js";
import { Cluster } from "./cluster.js";
import { h, patchChildren, say } from "./dom.js";
import { drawFacets, drawFrame, drawLegend, drawNothing, drawScope, only, startBox } from "./filter.js";
import * as fleet from "./fleet.js";
import { GLYPHS, age, clock, plural } from "./format.js";
import { live } from "./frame.js";
import { drawFree } from "./free.js";
import { FleetMap } from "./map.js";
import { titled } from "./open-alerts.js";
import { attention, groupRow, hostRow, icon, iconLink, stateCounts, title } from "./rows.js";

const ANNOUNCE_MS = 60_000;
const MOST_AGE_SECONDS = 30; // a tooltip says for how long, in minutes
const byId = (id) => document.getElementById(id);
const main = byId("main");
const table = byId("hosts");
const grid = table.closest("table");
const applyOrder = byId("apply-order");
const limits = { size: Number(grid.dataset.size), atOnce: Number(grid.dataset.atOnce) };
const map = new FleetMap(byId("map").querySelector("canvas"), byId("map-words"));
let cluster = new Cluster();
let facets = null;
let drawnFacets = { facets: null, search: "" };
let facetsAskedAt = -Infinity;
let shown = ""; // the address for which the rows stand there: another one may reorder them
let announcedAt = performance.now();

async function load(signal) {
  const q = asked("q");
  const isNew = cluster.q !== q;
  const answer = api.cluster(api.OVERVIEW, isNew ? null : cluster.version, q, signal);
  const choices = wantsFacets() ? api.facets(q, signal) : null;
  choices?.catch(() => {}); // one that is lost is told of once, by the answer
  const body = await answer;
  if (isNew) {
    cluster = new Cluster(q);
    facets = null;
  }
  cluster.merge(body);
  facets = (await choices) ?? facets;
  draw();
  return cluster.at;
}

/** Facets cost the server a look at every GPU: they are asked for once, and then while somebody uses them. */
function wantsFacets() {
  const isUsed = asked("q") !== "" || document.querySelector("#facets details[open]") !== null;
  const isFirst = facetsAskedAt === -Infinity;
  if (!isUsed && !isFirst) return false;
  facetsAskedAt = performance.now();
  return true;
}

function draw() {
  const hosts = cluster.narrowed();
  main.removeAttribute("aria-busy");
  say(byId("sentence"), cluster.summary);
  announce(cluster.summary);
  document.title = titled(title(hosts, document.documentElement.dataset.site));
  const shape = iconLink(icon(hosts));
  if (byId("icon").getAttribute("href") !== shape) byId("icon").setAttribute("href", shape);
  drawFrame();
  drawScope(cluster);
  drawNotes(attention(hosts, cluster.at));
  drawFree(hosts);
  drawLegend(stateCounts(hosts), cluster.q ? facets : null);
  if (facets && (facets !== drawnFacets.facets || location.search !== drawnFacets.search)) drawFacets(facets);
  drawnFacets = { facets, search: location.search };
  const isEmpty = cluster.hosts.size === 0;
  byId("empty").hidden = !isEmpty || Boolean(cluster.of?.hosts);
  byId("nothing").hidden = !isEmpty || !cluster.of?.hosts;
  byId("fleet").hidden = !byId("empty").hidden;
  grid.hidden = isEmpty;
  if (isEmpty) drawNothing(cluster);
  drawGroups(hosts);
  drawHead();
  const isMap = asked("view") === "map";
  byId("map").hidden = !isMap;
  grid.hidden ||= isMap;
  if (isMap) drawMap();
  drawRows();
}

function drawNotes(notes) {
  byId("attention").hidden = notes.length === 0;
  const items = notes.map(({ state, text, href }) =>
    h("li", { "data-state": state }, h("span", { class: "mark", "aria-hidden": "true" }, GLYPHS[state]), h("a", { href }, text)),
  );
  patchChildren(byId("notes"), items);
}

// ------------------------------------------------------------------------------------------------- groups, map

/** What the page groups by: what is asked for; of many hosts the models; null: nothing. */
function grouping() {
  const by = new URLSearchParams(location.search).get("group");
  if (by !== null) return ["model", "part", "state"].includes(by) ? by : null;
  return cluster.hosts.size > Number(byId("groups").dataset.limit) && !cluster.q ? "model" : null;
}

function drawGroups(hosts) {
  const by = grouping();
  const groups = by === null ? [] : fleet.groups(hosts, by);
  byId("groups").hidden = groups.length === 0;
  for (const link of document.querySelectorAll("#groups [data-group]")) {
    link.setAttribute("href", here({ group: link.dataset.group }));
    current(link, link.dataset.group === by);
  }
  const q = (name) => (name === "" ? null : `${cluster.understood} ${only(by, name)}`.trim());
  patchChildren(byId("group-rows"), groups.map((group) => groupRow(group, q(group.name))));
}

function drawMap() {
  const by = grouping() === "part" ? "part" : "model";
  const groups = new Map();
  for (const host of cluster.byName()) {
    if (!host.gpus.length) continue;
    const name = (by === "part" ? host.partitions.join(", ") || "no partition" : host.gpus[0].model);
    if (!groups.has(name)) groups.set(name, []);
    groups.get(name).push(host);
  }
  map.show([...groups].map(([name, hosts]) => ({ name, hosts })), cluster.at);
}

// ------------------------------------------------------------------------------------------------- the table

const current = (link, is) => (is ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current"));

function drawHead() {
  const sort = asked("sort") || fleet.WORST;
  for (const head of grid.querySelectorAll("th[data-sort]")) {
    const name = head.dataset.sort;
    head.querySelector("a")?.setAttribute("href", here({ sort: fleet.nextSort(name, sort) }));
    if (sort === name) head.setAttribute("aria-sort", "ascending");
    else if (sort === `-${name}`) head.setAttribute("aria-sort", "descending");
    else head.removeAttribute("aria-sort");
  }
  drawColumns();
  for (const link of document.querySelectorAll("[data-view]")) {
    const view = link.dataset.view;
    link.setAttribute("href", view === "groups" ? here({ group: grouping() ? "none" : "model" }) : here({ view: view || null }));
    current(link, view === "groups" ? grouping() !== null : view === asked("view"));
  }
}

/** Show the columns that the address names; where it names none, the width of the page decides. */
function drawColumns() {
  const links = [...document.querySelectorAll("#columns a")];
  const names = links.map((link) => link.parentElement.dataset.key);
  const chosen = asked("cols") ? asked("cols").split(",") : null;
  const isShown = (name) => chosen === null || chosen.includes(name);
  if (chosen === null) delete grid.dataset.hidden;
  else grid.dataset.hidden = names.filter((name) => !isShown(name)).join(" ");
  for (const [place, link] of links.entries()) {
    const wished = names.filter((name, other) => isShown(name) !== (other === place));
    link.setAttribute("href", here({ cols: wished.length === names.length ? null : wished.join(",") || "host" }));
    current(link, isShown(names[place]));
  }
}

/** Draw all rows; while somebody points into the table or holds the focus there, none changes its place. */
function drawRows() {
  const sort = asked("sort") || fleet.WORST;
  const part = fleet.page(cluster.hosts.size, asked("page"), limits);
  const wanted = fleet.order(cluster.byName(), sort).slice(Math.max(0, part.first - 1), part.last);
  const isSame = shown === location.search;
  shown = location.search;
  const isHeld = isSame && (table.matches(":hover") || table.contains(document.activeElement));
  const rows = isHeld ? inPlace(wanted) : wanted;
  const standing = new Map([...table.rows].map((each) => [each.dataset.key, each]));
  const moved = wanted.filter((host, place) => rows[place] !== host).length;
  applyOrder.hidden = moved === 0;
  if (moved) say(applyOrder, `${plural(moved, "row")} would move: apply`);
  grid.toggleAttribute("data-wide", rows.some((host) => host.gpus.length > 8));
  patchChildren(table, rows.map((host) => row(host, standing.get(host.host))));
  for (const strip of table.querySelectorAll(".strip")) oneTabStop(strip);
  drawPages(part, sort);
}

/** What the rows that stand there were drawn from, and when (Unix s). */
const drawn = new WeakMap();

/** The row of a host: the one that stands there, where nothing but its age has changed since it was drawn. */
function row(host, standing) {
  const last = standing && drawn.get(standing);
  if (last?.host === host && last.search === shown && cluster.at - last.at < MOST_AGE_SECONDS) {
    say(standing.cells[standing.cells.length - 1], age(cluster.at - host.last_at));
    return standing;
  }
  const fresh = hostRow(host, cluster.at);
  drawn.set(standing ?? fresh, { host, at: cluster.at, search: shown });
  return fresh;
}

/** The hosts whose rows stand there, in their order; where one is gone, those that should stand there follow. */
function inPlace(wanted) {
  const standing = [...table.rows].map((row) => cluster.hosts.get(row.dataset.key)).filter(Boolean);
  const others = wanted.filter((host) => !standing.includes(host));
  return [...standing, ...others].slice(0, wanted.length);
}

function drawPages(part, sort) {
  const which = part.pages > 1 ? `hosts ${part.first}–${part.last} of ${part.total}` : plural(part.total, "host");
  const head = grid.querySelector(`th[data-sort="${sort.replace("-", "")}"]`);
  say(byId("count"), sort === fleet.WORST || !head ? `${which}, worst first` : `${which}, by ${head.textContent.trim().toLowerCase()}`);
  const pages = byId("pages");
  pages.hidden = part.pages === 1 || grid.hidden;
  const step = (rel, key, does, number, text) =>
    h("a", { rel, "aria-keyshortcuts": key, "data-does": does, href: here({ page: number }) }, text);
  patchChildren(pages, [
    ...(part.number > 1 ? [step("prev", "[", "page before", part.number - 1, "‹ before")] : []),
    h("span", {}, `${part.first}–${part.last} of ${part.total}`),
    ...(part.number < part.pages ? [step("next", "]", "next page", part.number + 1, "next ›")] : []),
  ]);
}

applyOrder.addEventListener("click", () => {
  document.activeElement?.blur();
  shown = "";
  drawRows();
});

/** A strip of 64 GPUs is one stop of the Tab key; the arrow keys walk in it. */
function oneTabStop(strip) {
  const cells = [...strip.children];
  const stop = cells.find((cell) => cell === document.activeElement) ?? cells.find((cell) => cell.tabIndex === 0);
  for (const cell of cells) {
    const index = cell === (stop ?? cells[0]) ? 0 : -1;
    if (cell.tabIndex !== index || !cell.hasAttribute("tabindex")) cell.tabIndex = index;
  }
}

table.addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  const next = step === undefined ? null : neighbour(event.target, step);
  if (!next) return;
  event.preventDefault();
  event.target.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
});

const neighbour = (cell, step) => (step > 0 ? cell.nextElementSibling : cell.previousElementSibling);

/** Tell a screen reader what changed: the sentence only, and at most once a minute. */
function announce(sentence) {
  const box = byId("announced");
  const last = box.dataset.last ?? sentence;
  box.dataset.last ??= sentence;
  if (last === sentence || performance.now() - announcedAt < ANNOUNCE_MS) return;
  announcedAt = performance.now();
  box.dataset.last = sentence;
  box.textContent = `${clock(cluster.at)}: ${sentence}`;
}

for (const strip of table.querySelectorAll(".strip")) oneTabStop(strip);
startBox();
const poll = live(load);
byId("facets").addEventListener("toggle", ({ target }) => target.open && poll.now(), true);
listen(() => {
  drawFrame();
  if (asked("q") === cluster.q && cluster.version !== null) {
    draw();
    return;
  }
  main.setAttribute("aria-busy", "true"); // what stands there is of another filter, until the answer is here
  poll.now();
});
