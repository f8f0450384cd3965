// The Xids of the last day on the overview, drawn anew each minute. `web/xids.py` says the same; a browser test compares.

import * as api from "./api.js";
import { asked } from "./address.js";
import { h, patchChildren } from "./dom.js";
import { GLYPHS, age, cut, plural } from "./format.js";

const MINUTE_MS = 60_000;
const section = document.getElementById("xids");
const most = Number(section.dataset.most);

/** One line for each kind of Xid of each GPU, the newest first. */
function lines({ at, events }) {
  const found = new Map();
  for (const event of events) {
    const key = JSON.stringify([event.host, event.gpu, event.code]);
    found.set(key, [...(found.get(key) ?? []), event]);
  }
  return [...found.values()].map(([newest, ...others]) => {
    const gpu = newest.gpu === null ? "" : ` GPU ${cut(String(newest.gpu), 24)}`;
    const code = newest.code === null ? "" : ` ${cut(String(newest.code), 16)}`;
    const often = others.length ? `, ${others.length + 1} times` : "";
    return {
      text: `${newest.host}${gpu} Xid${code}: ${cut(newest.text, 100)}, ${age(at - newest.at)} ago${often}`,
      href: api.hostLink(newest.host) + (typeof newest.gpu === "number" ? `#gpu-${newest.gpu}` : ""),
    };
  });
}

async function refresh() {
  if (document.hidden) return;
  try {
    draw(lines(await api.xids(asked("q"), AbortSignal.timeout(MINUTE_MS))));
  } catch (error) {
    if (!(error instanceof api.Lost)) throw error; // the chip says that the server is lost
  }
}

function draw(found) {
  section.hidden = found.length === 0;
  const items = found
    .slice(0, most)
    .map(({ text, href }) =>
      h("li", { "data-state": "error" }, h("span", { class: "mark", "aria-hidden": "true" }, GLYPHS.error), h("a", { href }, text)),
    );
  const more = found.length - most;
  if (more > 0) items.push(h("li", {}, h("a", { href: api.xidsAsCsv(asked("q")) }, `and ${plural(more, "line")} more, as CSV`)));
  patchChildren(section.querySelector("ul"), items);
}

setInterval(refresh, MINUTE_MS);
document.addEventListener("visibilitychange", refresh);
