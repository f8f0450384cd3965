// The overview: the live view of the API, drawn into the page that the server sent.

import * as api from "./api.js";
import { h, patchChildren, say } from "./dom.js";
import { GLYPHS, clock, plural } from "./format.js";
import { live } from "./frame.js";
import { drawFree } from "./free.js";
import { drawLegend } from "./legend.js";
import { Cluster, attention, hostRow, icon, iconLink, stateCounts, title } from "./rows.js";

const ANNOUNCE_MS = 60_000;
const cluster = new Cluster();
const byId = (id) => document.getElementById(id);
const table = byId("hosts");
const applyOrder = byId("apply-order");
let announcedAt = performance.now();

async function load(signal) {
  cluster.merge(await api.cluster(cluster.version, signal));
  draw();
  return cluster.at;
}

function draw() {
  const hosts = cluster.byName();
  say(byId("sentence"), cluster.summary);
  announce(cluster.summary);
  document.title = title(hosts, document.documentElement.dataset.site);
  const shape = iconLink(icon(hosts));
  if (byId("icon").getAttribute("href") !== shape) byId("icon").setAttribute("href", shape);
  drawNotes(attention(hosts, cluster.at));
  drawFree(hosts);
  drawLegend(byId("legend"), stateCounts(hosts));
  byId("empty").hidden = hosts.length > 0;
  byId("fleet").hidden = hosts.length === 0;
  say(byId("count"), `${plural(hosts.length, "host")}, worst first`);
  table.closest("table").toggleAttribute("data-wide", hosts.some((host) => host.gpus.length > 8));
  drawRows();
}

function drawNotes(notes) {
  byId("attention").hidden = notes.length === 0;
  const items = notes.map(({ state, text, href }) =>
    h(
      "li",
      { "data-state": state },
      h("span", { class: "mark", "aria-hidden": "true" }, GLYPHS[state]),
      href === null ? h("span", {}, text) : h("a", { href }, text),
    ),
  );
  patchChildren(byId("notes"), items);
}

/** Draw all rows; while somebody points into the table or holds the focus there, none changes its place. */
function drawRows() {
  const wanted = cluster.worstFirst();
  const held = table.matches(":hover") || table.contains(document.activeElement);
  const shown = held ? inPlace(wanted) : wanted;
  const moved = wanted.filter((host, place) => shown[place] !== host).length;
  applyOrder.hidden = moved === 0;
  if (moved) say(applyOrder, `${plural(moved, "row")} would move: apply`);
  patchChildren(table, shown.map((host) => hostRow(host, cluster.at)));
  for (const strip of table.querySelectorAll(".strip")) oneTabStop(strip);
}

/** The hosts in the order in which their rows stand now, new ones behind. */
function inPlace(hosts) {
  const places = new Map([...table.rows].map((row, place) => [row.dataset.key, place]));
  const place = (host) => places.get(host.host) ?? places.size;
  return [...hosts].sort((one, other) => place(one) - place(other));
}

applyOrder.addEventListener("click", () => {
  document.activeElement?.blur();
  drawRows();
});

/** A strip of 64 GPUs is one stop of the Tab key; the arrow keys walk in it. */
function oneTabStop(strip) {
  const cells = [...strip.children];
  const current = cells.find((cell) => cell === document.activeElement) ?? cells.find((cell) => cell.tabIndex === 0);
  for (const cell of cells) cell.tabIndex = cell === (current ?? cells[0]) ? 0 : -1;
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
live(load);
