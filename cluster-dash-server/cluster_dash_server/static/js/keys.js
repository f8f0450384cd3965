// The keyboard: what a page offers says its key by `aria-keyshortcuts`, so that keys, help and page cannot differ.

import { h } from "./dom.js";
import { asked, go, here } from "./address.js";
import { ask, open } from "./dialog.js";
import { openPalette } from "./palette.js";
import { kept, keep } from "./storage.js";

const root = document.documentElement;
const LEADER_MS = 1500;
const TYPED_IN = "input, textarea, select, [contenteditable]";
let leaderAt = -Infinity;

/** What any page can do, besides what stands on it. */
const COMMANDS = {
  f: ["free GPUs", () => filter("state:free")],
  m: ["my GPUs", mine],
  x: ["what is broken", () => filter("state:error,stale,down")],
  j: ["next row", () => walk(1)],
  k: ["row before", () => walk(-1)],
  "?": ["these keys", help],
};

/** @returns {[string, string, () => void][]} key (empty: none), what it does, and how */
export function commands() {
  const onPage = [...document.querySelectorAll("[data-does]")]
    .filter((element) => element.checkVisibility())
    .map((element) => [element.getAttribute("aria-keyshortcuts") ?? "", element.dataset.does, () => use(element)]);
  const anywhere = Object.entries(COMMANDS).map(([key, [does, run]]) => [key, does, run]);
  return [...onPage, ...anywhere, ...pages().map(([letter, name, link]) => [`g ${letter}`, `go to ${name}`, () => link.click()])];
}

/** The pages of the frame, each by a letter of its name. */
function pages() {
  const taken = new Set();
  return [...document.querySelectorAll("header nav a")].flatMap((link) => {
    const name = link.textContent.trim();
    const letter = [...name.toLowerCase()].find((each) => /[a-z]/.test(each) && !taken.has(each));
    if (!letter) return [];
    taken.add(letter);
    return [[letter, name, link]];
  });
}

function use(element) {
  if (!element.matches(TYPED_IN)) return element.click();
  element.focus();
  element.select?.();
}

/** Show the overview under a filter; on a page that has one, that page; once more takes it away. */
function filter(q) {
  if (root.dataset.filters === undefined) location.assign(`${root.dataset.base}?q=${encodeURIComponent(q)}`);
  else go(here({ q: asked("q") === q ? null : q }));
}

async function mine() {
  const name = root.dataset.viewer || kept("me") || (await ask("Who are you on the hosts? Asked once, kept in this browser.", "User name"));
  if (!name) return;
  keep("me", name);
  filter(`user:${/^[\w.-]+$/.test(name) ? name : JSON.stringify(name)}`);
}

/** Walk over the rows of the table that holds the focus, or of the last one: above it stand groups at most. */
function walk(step) {
  const tables = [...document.querySelectorAll("main tbody")].filter((each) => each.checkVisibility());
  const table = document.activeElement.closest("tbody") ?? tables.at(-1);
  const links = [...(table?.querySelectorAll("th[scope=row] a") ?? [])].filter((link) => link.checkVisibility());
  const row = document.activeElement.closest("tr");
  const place = links.findIndex((link) => link.closest("tr") === row);
  const next = links[place < 0 ? (step > 0 ? 0 : -1) : place + step];
  next?.focus();
}

function help() {
  const list = commands().filter(([key]) => key && key !== "?");
  const rows = list.map(([key, does]) => h("div", {}, h("dt", {}, ...keyed(key)), h("dd", {}, does)));
  const isOn = h("input", { type: "checkbox", id: "keys-on" });
  isOn.checked = kept("keys") !== "off";
  isOn.addEventListener("change", () => keep("keys", isOn.checked ? "on" : "off"));
  const more = [
    ["Ctrl K", "jump to a page, host, user or command"],
    ["Enter", "open the row"],
    ["← →", "walk in a strip of GPUs"],
  ].map(([key, does]) => h("div", {}, h("dt", {}, h("kbd", {}, key)), h("dd", {}, does)));
  open(
    "Keys",
    h("dl", { class: "keys" }, ...more, ...rows),
    h("p", {}, h("label", { for: "keys-on" }, isOn, " keys without Ctrl are on")),
  );
}

const keyed = (key) => key.split(" ").flatMap((each) => [h("kbd", {}, each), " "]);

addEventListener("keydown", (event) => {
  if ((event.ctrlKey || event.metaKey) && !event.altKey && event.key.toLowerCase() === "k") {
    event.preventDefault();
    openPalette(commands());
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || kept("keys") === "off") return;
  if (event.target.matches?.(TYPED_IN)) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (document.querySelector("dialog[open]")) return;
  const isLed = performance.now() - leaderAt < LEADER_MS;
  leaderAt = -Infinity;
  if (event.key === "g" && !isLed) {
    leaderAt = performance.now();
    return;
  }
  const found = commands().find(([key]) => key === (isLed ? `g ${event.key}` : event.key));
  if (!found) return;
  event.preventDefault();
  found[2]();
});

document.getElementById("keys")?.addEventListener("click", help);
