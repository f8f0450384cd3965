// The filter: the box in the frame, what it was understood as, the legend and the facets. The server reads it, nobody else.

import { asked, go, here } from "./address.js";
import { h, patchChildren, say } from "./dom.js";
import { STATES, cut, plural } from "./format.js";

const TYPING_MS = 300;
const byId = (id) => document.getElementById(id);
const NAMES = { model: "Model", part: "Partition", label: "Label", user: "User" };

/** The term that means one value of a key, as `facets.only` writes it. */
export function only(key, value) {
  const isPlain = key !== "model" && /^[\p{L}\p{N}]+$/u.test(value.replace(/[-_=.]/g, ""));
  return `${key}:${isPlain ? value : `"${value.replace(/\\/g, "\\\\").replace(/"/g, '\\"')}"`}`;
}

/** The words of a filter, as the server cuts it. */
const TERM = /(?:"(?:[^"\\]|\\.)*(?:"|\\?$)|[^\s"])+/gs;

/** Start the box: what is typed is asked for after a moment, Enter makes a step in the history. */
export function startBox() {
  const box = byId("q");
  let timer = null;
  const ask = (replace) => {
    clearTimeout(timer);
    if (box.value.trim() !== asked("q")) go(here({ q: box.value.trim() }), replace);
  };
  box.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => ask(true), TYPING_MS);
  });
  byId("filter").addEventListener("submit", (event) => {
    event.preventDefault();
    ask(false);
    box.blur();
  });
}

/** Show in the box and in the links of the frame what the address asks for. */
export function drawFrame() {
  const q = asked("q");
  const box = byId("q");
  if (box !== document.activeElement && box.value !== q) box.value = q;
  for (const link of document.querySelectorAll("a.export")) link.setAttribute("href", here({ format: link.dataset.format }));
  const root = document.documentElement.dataset.root;
  const path = `${root}api/gpu-summary`;
  const wish = encodeURIComponent(q).replaceAll("'", "%27");
  say(byId("curl"), q ? `curl '${path}?q=${wish}'` : `curl ${path}`);
  say(byId("curl-free"), `curl '${root}api/v1/free?${q ? `q=${wish}&` : ""}format=text'`);
}

/** Say what the filter means, and what of it was not understood. @param {import("./cluster.js").Cluster} cluster */
export function drawScope(cluster) {
  const { matching, of, q, understood, problems } = cluster;
  byId("scope").hidden = !q;
  if (!q || !matching) return;
  const gpus = `${matching.gpus} of ${plural(of.gpus, "GPU")}`;
  say(byId("matching"), `${gpus} on ${matching.hosts} of ${plural(of.hosts, "host")} fit`);
  say(byId("understood"), understood || "everything");
  byId("clear").setAttribute("href", here({ q: null }));
  patchChildren(byId("problems"), problems.map((problem) => h("li", {}, problem)));
}

/** Offer ways out of a filter that nothing fits. */
export function drawNothing(cluster) {
  const terms = cluster.understood.match(TERM) ?? [];
  const items = terms.map((text, place) => {
    const q = terms.filter((_, other) => other !== place).join(" ");
    return h("li", {}, h("a", { href: here({ q }) }, "without ", h("code", {}, text)));
  });
  patchChildren(byId("without"), items);
}

/**
 * Draw the legend: all states, always there, with how many GPUs each holds.
 * @param {Map<string, number>} counts of states, where there is no filter
 * @param {Object|null} facets of the filter, null where there is none
 */
export function drawLegend(counts, facets) {
  const choices = new Map(facets?.facets.state.map((choice) => [choice.value, choice]));
  for (const state of STATES) {
    const chip = document.querySelector(`#legend [data-state=${state}]`);
    const choice = choices.get(state) ?? { count: counts.get(state) ?? 0, chosen: false, q: only("state", state) };
    say(chip.querySelector("b"), String(choice.count));
    chip.toggleAttribute("data-none", choice.count === 0);
    chip.setAttribute("href", here({ q: choice.q }));
    if (choice.chosen) chip.setAttribute("aria-current", "true");
    else chip.removeAttribute("aria-current");
  }
}

/** Draw what there is to choose from; a facet with one value that is not chosen says nothing. */
export function drawFacets(facets) {
  const place = byId("facets");
  const telling = Object.keys(NAMES).filter((key) => {
    const choices = facets.facets[key];
    return choices.length > 1 || choices.some(({ chosen }) => chosen);
  });
  place.hidden = telling.length === 0;
  patchChildren(place, telling.map((key) => facet(key, facets.facets[key], facets.more[key])));
}

function facet(key, choices, more) {
  const chosen = choices.filter((choice) => choice.chosen).map(({ value }) => cut(value, 20));
  const items = choices.map(({ value, count, chosen: isChosen, q }) =>
    h(
      "li",
      { "data-key": value },
      h("a", { href: here({ q }), "aria-current": isChosen ? "true" : null }, h("span", {}, cut(value, 40)), h("b", {}, String(count))),
    ),
  );
  if (more) items.push(h("li", { class: "quiet" }, `and ${more} more: type the name`));
  return h(
    "details",
    { "data-key": key, name: "facets" },
    h("summary", {}, chosen.length ? `${NAMES[key]}: ${cut(chosen.join(", "), 32)}` : NAMES[key]),
    h("ul", { "aria-label": `GPUs by ${NAMES[key].toLowerCase()}` }, ...items),
  );
}

document.addEventListener("click", ({ target }) => {
  for (const facet of document.querySelectorAll(".options details[open]")) {
    if (!facet.contains(target)) facet.open = false;
  }
});
document.addEventListener("keydown", ({ key, target }) => {
  const facet = key === "Escape" && target.closest?.(".options details[open]");
  if (!facet) return;
  facet.open = false;
  facet.querySelector("summary").focus();
});
