// A wall screen and embedded parts: drawn anew from what the server would send for them now.

import * as api from "./api.js";
import { patch } from "./dom.js";
import { age, clock } from "./format.js";
import { Poll } from "./poll.js";

const root = document.documentElement;
const chip = document.getElementById("freshness");

async function load(signal) {
  const fresh = await api.page(signal);
  document.title = fresh.title;
  patch(document.querySelector("main"), fresh.querySelector("main"));
  return Number(fresh.documentElement.dataset.at);
}

function say(poll) {
  chip.dataset.freshness = poll.lost ? "lost" : "live";
  chip.textContent = poll.lost ? `⚠ server lost, showing ${clock(poll.at)}` : `● live ${age((performance.now() - poll.cameAt) / 1000)}`;
}

const poll = new Poll(load, Number(root.dataset.pollSeconds), say);
poll.at = Number(root.dataset.at);
poll.cameAt = performance.now();
setInterval(() => say(poll), 1000);
say(poll);
poll.start();
