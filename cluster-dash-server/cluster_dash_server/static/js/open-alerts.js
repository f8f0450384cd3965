// How many alerts nobody has taken on: in the frame of every page, and in its title.

import * as api from "./api.js";
import { plural } from "./format.js";

const PERIOD_MS = 30_000;
const place = document.getElementById("open-alerts");
const count = () => (place?.hidden ? 0 : Number(place?.textContent ?? 0));

/** A title with the count in front of it, as the server writes it. */
export const titled = (text) => (count() ? `${plural(count(), "alert")} · ${text}` : text);

/** Show a count in the frame. */
export function show(number) {
  if (!place || number === count()) return;
  const said = titled("");
  const bare = document.title.startsWith(said) ? document.title.slice(said.length) : document.title;
  place.textContent = String(number);
  place.hidden = number === 0;
  document.title = titled(bare);
}

/** What a page as the server would send it now says of the count. @param {Document} page */
export const countOf = (page) => {
  const said = page.getElementById("open-alerts");
  return said?.hidden ? 0 : Number(said?.textContent ?? 0);
};

/** Ask now and then, while somebody looks. */
export function watch() {
  if (!place) return;
  setInterval(async () => {
    if (document.hidden) return;
    try {
      show((await api.openAlerts(AbortSignal.timeout(PERIOD_MS))).alerts.length);
    } catch (error) {
      if (!(error instanceof api.Lost)) throw error; // the chip in the frame says that the server is lost
    }
  }, PERIOD_MS);
}
