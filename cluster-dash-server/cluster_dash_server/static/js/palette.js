// Ctrl K: everything by its name, with its key beside it.

import * as api from "./api.js";
import { h, patchChildren } from "./dom.js";
import { open } from "./dialog.js";
import { compare, cut, natural } from "./format.js";

const MOST = 12;
const base = document.documentElement.dataset.base;

/** @param {[string, string, () => void][]} commands key, what it does, and how */
export async function openPalette(commands) {
  if (document.querySelector("dialog[open]")) return;
  let things = commands.map(([key, does, run]) => ({ kind: "", name: does, key, run }));
  const input = h("input", {
    ...{ type: "text", role: "combobox", "aria-expanded": "true", "aria-controls": "found", "aria-autocomplete": "list" },
    ...{ "aria-label": "Page, host, user or command", autocomplete: "off", spellcheck: "false" },
  });
  const list = h("ul", { id: "found", role: "listbox", "aria-label": "Found" });
  const box = open("Jump to", input, list);
  let found = [];
  let chosen = 0;

  const draw = () => {
    found = matching(things, input.value);
    chosen = Math.min(chosen, Math.max(0, found.length - 1));
    patchChildren(list, found.map((thing, place) => item(thing, place, place === chosen)));
    if (!found.length) patchChildren(list, [h("li", { class: "quiet", role: "option", "aria-disabled": "true" }, "Nothing of that name.")]);
    if (found.length) input.setAttribute("aria-activedescendant", `found-${chosen}`);
    else input.removeAttribute("aria-activedescendant");
  };
  const run = (thing) => {
    box.close();
    thing.run();
  };
  input.addEventListener("input", () => {
    chosen = 0;
    draw();
  });
  input.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) chosen = (chosen + step + found.length) % Math.max(1, found.length);
    else if (event.key === "Enter" && found.length) run(found[chosen]);
    else return;
    event.preventDefault();
    draw();
  });
  list.addEventListener("click", (event) => {
    const place = event.target.closest("[data-place]")?.dataset.place;
    if (place !== undefined) run(found[Number(place)]);
  });
  draw();
  input.focus();
  try {
    things = things.concat(named(await api.cluster(api.NAMES, null, "", AbortSignal.timeout(10_000))));
    if (box.isConnected) draw();
  } catch {
    // the server is lost, as the frame says: commands still work
  }
}

/** All hosts, users and models, as things to go to. */
function named({ hosts, gpus }) {
  const users = new Set(gpus.users.flatMap((each) => Object.keys(each ?? {})));
  const filter = (key, name) => () => location.assign(`${base}?q=${encodeURIComponent(`${key}:${JSON.stringify(name)}`)}`);
  const sorted = (names) => [...names].sort((one, other) => compare(natural(one), natural(other)));
  return [
    ...sorted(hosts.host).map((name) => ({ kind: "host", name, key: "", run: () => location.assign(api.hostLink(name)) })),
    ...sorted(users).map((name) => ({ kind: "user", name, key: "", run: () => location.assign(api.userLink(name)) })),
    ...sorted(new Set(gpus.model)).map((name) => ({ kind: "model", name, key: "", run: filter("model", name) })),
  ];
}

/** Those that hold all words typed: first the ones that begin so, then as they stand. */
function matching(things, typed) {
  const text = typed.trim().toLowerCase();
  const words = text.split(/\s+/);
  const fits = things.filter(({ kind, name }) => {
    const said = `${kind} ${name}`.toLowerCase();
    return words.every((word) => said.includes(word));
  });
  const first = fits.filter(({ name }) => name.toLowerCase().startsWith(text));
  return [...first, ...fits.filter((thing) => !first.includes(thing))].slice(0, MOST);
}

const item = ({ kind, name, key }, place, isChosen) =>
  h(
    "li",
    { id: `found-${place}`, role: "option", "aria-selected": String(isChosen), "data-place": String(place) },
    h("span", { class: "kind" }, kind),
    h("span", { class: "name" }, cut(name, 80)),
    h("kbd", key ? {} : { hidden: "" }, key),
  );
