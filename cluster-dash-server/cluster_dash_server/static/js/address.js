// The address says what is seen: filter, order, group, view, page. A link shows the same to everybody.

const listeners = new Set();

/** What the address asks for under a name; empty where it does not say. */
export const asked = (name) => new URLSearchParams(location.search).get(name) ?? "";

const quoted = (text) =>
  encodeURIComponent(text)
    .replace(/[!'()*]/g, (sign) => `%${sign.charCodeAt(0).toString(16).toUpperCase()}`)
    .replace(/%3A/g, ":")
    .replace(/%2C/g, ",");

/**
 * The address of this view with some parameters changed, as `views.here` writes it: null or empty takes one away, and
 * another filter, order or group begins on its first page.
 * @param {Object<string, string|number|null>} changes
 */
export function here(changes) {
  const parameters = new Map(new URLSearchParams(location.search));
  if (Object.keys(changes).some((name) => name !== "page" && name !== "format")) parameters.delete("page");
  for (const [name, value] of Object.entries(changes)) parameters.set(name, value === null ? "" : String(value));
  const kept = [...parameters].filter(([, value]) => value !== "");
  return location.pathname + (kept.length ? `?${kept.map(([name, value]) => `${name}=${quoted(value)}`).join("&")}` : "");
}

/**
 * Show another view on this page.
 * @param {string} address of the same page
 * @param {boolean} replace without a step in the browser's history: while somebody types
 */
export function go(address, replace = false) {
  if (address === location.pathname + location.search) return;
  history[replace ? "replaceState" : "pushState"](null, "", address);
  tell();
}

/** @param {() => void} listener is told when the address has changed, by `go` or by the browser's Back */
export function listen(listener) {
  listeners.add(listener);
  document.addEventListener("click", follow);
}

/** Follow a link to another view of this page without loading it anew. */
function follow(event) {
  const link = event.target.closest?.("a[href]");
  if (!link || event.defaultPrevented || event.button || event.ctrlKey || event.metaKey || event.shiftKey) return;
  const to = new URL(link.href);
  const isHere = to.origin === location.origin && to.pathname === location.pathname && !to.hash;
  if (!isHere || to.searchParams.has("format") || link.target || link.hasAttribute("download")) return;
  event.preventDefault();
  go(to.pathname + to.search);
}

function tell() {
  for (const listener of listeners) listener();
}

addEventListener("popstate", tell);
