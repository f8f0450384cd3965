// Building elements and changing what stands there into what should, without replacing what a reader holds.

const OWNED_BY_READER = new Set(["open", "tabindex"]);

/**
 * Make an element. Children are elements or texts; a text is never read as markup.
 * @param {string} tag
 * @param {Object<string, string|null|undefined>} attributes null and undefined: not set
 * @param {...(Node|string)} children
 */
export function h(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/**
 * Change an element into another one, in place: focus, scroll and selection survive. Elements with `data-key` are
 * matched by it; those with `data-keep` belong to a script and are left alone.
 * @param {Element} old
 * @param {Element} wanted used up by this
 */
export function patch(old, wanted) {
  if ("keep" in old.dataset) return;
  if (old.tagName !== wanted.tagName) {
    old.replaceWith(wanted);
    return;
  }
  patchAttributes(old, wanted);
  patchChildren(old, [...wanted.childNodes].filter(counts));
}

/**
 * Change the children of an element into those wanted.
 * @param {Element} parent
 * @param {Node[]} wanted new ones, or old ones that stay as they are
 */
export function patchChildren(parent, wanted) {
  const keys = new Set(wanted.map((child) => child.dataset?.key));
  const byKey = new Map();
  for (const child of [...parent.childNodes]) {
    const key = child.dataset?.key;
    // what goes is taken out first: else all behind it would have to move, and a moved element loses the focus
    if (!counts(child) || (key && !keys.has(key))) child.remove();
    else if (key) byKey.set(key, child);
  }
  let next = parent.firstChild; // the first old child that has not found its place yet
  for (const child of wanted) {
    const key = child.dataset?.key;
    const old = key ? byKey.get(key) : next?.dataset?.key ? null : next;
    if (!old) {
      parent.insertBefore(child, next);
      continue;
    }
    if (old === next) next = next.nextSibling;
    else parent.insertBefore(old, next);
    become(old, child);
  }
  while (next) {
    const after = next.nextSibling;
    next.remove();
    next = after;
  }
}

function become(old, wanted) {
  if (old === wanted) return; // who asks knows that nothing in it has changed
  if (old.nodeType !== wanted.nodeType) old.replaceWith(wanted);
  else if (old.nodeType !== Node.TEXT_NODE) patch(old, wanted);
  else if (old.data !== wanted.data) old.data = wanted.data;
}

/** Set a text only where it differs: a selection in it survives. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function patchAttributes(old, wanted) {
  for (const { name } of [...old.attributes]) {
    if (!wanted.hasAttribute(name) && !OWNED_BY_READER.has(name)) old.removeAttribute(name);
  }
  for (const { name, value } of wanted.attributes) {
    if (old.getAttribute(name) !== value && !OWNED_BY_READER.has(name)) old.setAttribute(name, value);
  }
}

/** Blanks between elements mean nothing: a template has them, `h` does not. */
const counts = (node) =>
  node.nodeType === Node.ELEMENT_NODE || (node.nodeType === Node.TEXT_NODE && node.data.trim() !== "");
