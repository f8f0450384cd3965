// History: figures that come with the page. A drag over one looks closer in all of them, a double click goes back.

import { go, here, listen } from "./address.js";
import { draw, onZoom, save } from "./charts.js";
import { live, momentOf as momentOfPage, redraw } from "./frame.js";
import { figuresOf, momentOf } from "./timeline.js";

const SAID_MS = 1500;
const copyMoment = () => document.getElementById("copy-moment");
/** The address whose figures are on the page. */
let shown = location.href;
/** How many times the reader has looked closer, and can go back. */
let depth = 0;

function show() {
  const places = [...document.querySelectorAll(".timeline .plot")];
  const drawings = places.map((place) => JSON.parse(place.parentElement.querySelector(".drawing").textContent));
  for (const [number, figure] of figuresOf(drawings, places[0]?.clientWidth).entries()) {
    const place = places[number];
    draw(place, figure);
    onZoom(place, closer, back);
  }
}

function closer(begin, end) {
  const [from, to] = [begin, end].map((text) => Math.round(momentOf(text)));
  if (to - from < 2) return;
  depth += 1;
  go(here({ from, to }));
}

function back() {
  if (depth === 0) return;
  depth -= 1;
  window.history.back();
}

/** A past that lies between two moments does not change: it is asked for once. */
async function load(signal) {
  const isFixed = new URLSearchParams(location.search).has("to") && !/now/.test(location.search);
  if (isFixed && shown === location.href) return Date.now() / 1000;
  const fresh = await redraw(signal);
  shown = location.href;
  for (const field of document.querySelectorAll("form.time input")) {
    if (field !== document.activeElement) field.value = field.defaultValue;
  }
  show();
  return momentOfPage(fresh);
}

document.addEventListener("click", async ({ target }) => {
  if (target.dataset?.opens) {
    target.setAttribute("aria-expanded", String(target.getAttribute("aria-expanded") !== "true"));
  } else if (target.dataset?.saves) {
    save(document.getElementById(`plot-${target.dataset.saves}`), `history-${target.dataset.saves}`);
  } else if (target === copyMoment()) {
    await copyLinkAtThisMoment();
  }
});

/** Copy the address with the moments that are on the page now, so that it shows the same for ever. */
async function copyLinkAtThisMoment() {
  const button = copyMoment();
  const address = new URL(location.href);
  address.searchParams.set("from", button.dataset.begin);
  address.searchParams.set("to", button.dataset.end);
  try {
    await navigator.clipboard.writeText(address.href);
    button.textContent = "Copied";
  } catch {
    window.history.replaceState(window.history.state, "", address); // a site without TLS may not copy
    button.textContent = "Copy it from the address bar";
  }
  setTimeout(() => {
    copyMoment().textContent = "Copy link at this moment";
  }, SAID_MS);
}

show();
const poll = live(load);
listen(() => poll.now());
