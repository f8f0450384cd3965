// The cards "Free now": which models are free, how many, where, and the line for a terminal.

import { h, patchChildren } from "./dom.js";
import { compare, cut } from "./format.js";
import { compress } from "./hostlist.js";

const MOST_CARDS = 8;
const LONG = 60; // characters of a hostlist from which on it may scroll, and takes the focus to do so
const SAID_MS = 1500;
const section = document.getElementById("free-now");
const list = document.getElementById("cards");

/** @param {import("./cluster.js").Host[]} hosts by name */
export function drawFree(hosts) {
  const free = new Map();
  for (const host of hosts) {
    for (const { model, state } of host.gpus) {
      if (state !== "free") continue;
      if (!free.has(model)) free.set(model, []);
      free.get(model).push(host);
    }
  }
  const byCount = [...free].sort(([one, many], [other, more]) => more.length - many.length || compare(one, other));
  section.hidden = byCount.length === 0;
  patchChildren(list, byCount.slice(0, MOST_CARDS).map(([model, on]) => standing(model, on) ?? card(model, on)));
}

/** What the cards that stand there were drawn from. */
const drawn = new Map();

/** The card that stands there, where it says the same. */
function standing(model, on) {
  const text = on.map(({ host, asks }) => [host, ...asks].join("\t")).join("\n");
  const isSame = drawn.get(model) === text;
  drawn.set(model, text);
  return isSame ? [...list.children].find((each) => each.dataset.key === model) : undefined;
}

/** The line for a terminal: it takes a GPU where Slurm gives them, else says which are free. */
function lineOf(model, on) {
  if (on.every(({ asks }) => asks.length)) return `srun ${mostCommon(on.flatMap(({ asks }) => asks))} --pty bash`;
  const wanted = encodeURIComponent(model).replaceAll("'", "%27");
  return `curl -s '${document.documentElement.dataset.root}api/v1/free?model=${wanted}&format=text'`;
}

function mostCommon(texts) {
  const counts = new Map();
  for (const text of texts) counts.set(text, (counts.get(text) ?? 0) + 1);
  return [...counts].reduce((best, each) => (each[1] > best[1] ? each : best))[0];
}

function card(model, on) {
  const hosts = compress(on.map(({ host }) => host));
  return h(
    "li",
    { "data-key": model },
    h(
      "span",
      { class: "card" },
      h("b", {}, cut(model, 40)),
      " ",
      h("span", { class: "count" }, `×${on.length}`),
      " ",
      h("code", { class: "where", tabindex: hosts.length > LONG ? "0" : null }, hosts),
    ),
    h(
      "span",
      { class: "line" },
      h("code", {}, lineOf(model, on)),
      h("button", { type: "button", class: "copy needs-js", "aria-label": `Copy the line for ${cut(model, 40)}` }, "Copy"),
    ),
  );
}

list.addEventListener("click", async (event) => {
  const button = event.target.closest("button.copy");
  if (!button) return;
  const copied = await copy(button.previousElementSibling);
  button.textContent = copied ? "Copied" : "Selected";
  setTimeout(() => {
    button.textContent = "Copy";
  }, SAID_MS);
});

/** Copy a text; where the page may not (a site without TLS), select it, so that a key press does. */
async function copy(element) {
  try {
    await navigator.clipboard.writeText(element.textContent);
    return true;
  } catch {
    getSelection().selectAllChildren(element);
    return false;
  }
}
