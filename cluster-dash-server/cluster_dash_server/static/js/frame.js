// What every page has: the freshness chip, the pause button, the theme button.

import * as api from "./api.js";
import { patch } from "./dom.js";
import { age, clock, moment } from "./format.js";
import "./keys.js";
import * as openAlerts from "./open-alerts.js";
import { Poll } from "./poll.js";
import { keep } from "./storage.js";

const root = document.documentElement;
const chip = document.getElementById("freshness");
const SAID_MS = 1500;
const THEMES = ["auto", "light", "dark"];

/**
 * Keep this page live.
 * @param {(signal: AbortSignal) => Promise<number>} load asks, draws, and returns the moment of the data (Unix s)
 */
export function live(load) {
  const poll = new Poll(load, Number(root.dataset.pollSeconds), sayFreshness);
  poll.at = Number(root.dataset.at);
  poll.cameAt = performance.now();
  const button = document.getElementById("pause");
  button.addEventListener("click", () => {
    poll.pause(!poll.paused);
    button.setAttribute("aria-pressed", String(poll.paused));
    button.textContent = poll.paused ? "Resume" : "Pause";
  });
  setInterval(() => sayFreshness(poll), 1000);
  sayFreshness(poll);
  poll.start();
  return poll;
}

/**
 * Draw this page anew from what the server would send for it now.
 * @param {AbortSignal} signal
 * @returns {Promise<Document>} the page as it came, its main part used up
 */
export async function redraw(signal) {
  const fresh = await api.page(signal);
  sayMoments(fresh, momentOf(fresh));
  openAlerts.show(openAlerts.countOf(fresh));
  document.title = fresh.title;
  patch(document.querySelector("main"), fresh.querySelector("main"));
  patch(document.getElementById("icon"), fresh.getElementById("icon"));
  for (const link of document.querySelectorAll("a.export")) {
    link.setAttribute("href", fresh.querySelector(`a.export[data-format=${link.dataset.format}]`).getAttribute("href"));
  }
  return fresh;
}

/** @param {Document} page */
export const momentOf = (page) => Number(page.documentElement.dataset.at);

/** Say moments by the viewer's clock: the server knows no zone but UTC, which stays in the tooltip. */
function sayMoments(page, now) {
  for (const time of page.querySelectorAll("time[data-at]")) {
    time.textContent = moment(Number(time.dataset.at), now) ?? time.textContent;
  }
}

function sayFreshness(poll) {
  const [state, text] = freshness(poll);
  if (chip.dataset.freshness !== state) chip.dataset.freshness = state;
  if (chip.textContent !== text) chip.textContent = text;
}

function freshness(poll) {
  if (poll.paused) return ["paused", `❚❚ paused, showing ${clock(poll.at)}`];
  if (poll.lost) return ["lost", `⚠ server lost, showing ${clock(poll.at)}`];
  return ["live", `● live ${age((performance.now() - poll.cameAt) / 1000)}`];
}

function showTheme(button) {
  const theme = root.dataset.theme ?? "auto";
  button.textContent = `Theme: ${theme}`;
  root.dispatchEvent(new CustomEvent("themechange"));
}

function startThemeButton() {
  const button = document.getElementById("theme");
  button.addEventListener("click", () => {
    const next = THEMES[(THEMES.indexOf(root.dataset.theme ?? "auto") + 1) % THEMES.length];
    if (next === "auto") delete root.dataset.theme;
    else root.dataset.theme = next;
    keep("theme", next);
    showTheme(button);
  });
  showTheme(button);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => showTheme(button));
}

/** Copy the address of this view, which is all that somebody else needs to see the same. */
function startCopyButton() {
  const button = document.getElementById("copy-link");
  button.addEventListener("click", async () => {
    button.textContent = (await copied(location.href)) ? "Copied" : "Copy it from the address bar";
    setTimeout(() => {
      button.textContent = "Copy link";
    }, SAID_MS);
  });
}

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false; // a site without TLS may not
  }
}

/** On paper stand the address and the time of what is shown, and nothing is folded. */
addEventListener("beforeprint", () => {
  const at = chip.dataset.freshness === "live" ? Date.now() : Number(root.dataset.at) * 1000;
  document.querySelector(".printed").textContent = `${location.href}, ${new Date(at).toLocaleString("en-GB")}`;
  for (const folded of document.querySelectorAll("main details:not([name])")) folded.open = true;
});

sayMoments(document, Number(root.dataset.at));
startCopyButton();
startThemeButton();
openAlerts.watch();
