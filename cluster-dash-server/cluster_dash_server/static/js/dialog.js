// Boxes above the page: Escape closes them and the focus goes back to where it was.

import { h } from "./dom.js";

/** Open a box; it is gone from the page when it closes. */
export function open(title, ...content) {
  const close = h("button", { type: "button", class: "close", "aria-label": "Close" }, "✕");
  const box = h("dialog", { "aria-label": title }, h("div", { class: "dialog-head" }, h("h2", {}, title), close), ...content);
  close.addEventListener("click", () => box.close());
  box.addEventListener("click", (event) => event.target === box && box.close());
  box.addEventListener("close", () => box.remove());
  document.body.append(box);
  box.showModal();
  return box;
}

/** Ask for a line of text. @returns {Promise<string>} empty where the box was closed without one */
export function ask(question, label) {
  const input = h("input", { type: "text", name: "said", "aria-label": label, autocomplete: "username", maxlength: "256", required: "" });
  const form = h("form", { method: "dialog" }, input, h("button", { type: "submit" }, "Show"));
  return new Promise((resolve) => {
    let said = "";
    form.addEventListener("submit", () => {
      said = input.value.trim();
    });
    const box = open(question, form);
    box.addEventListener("close", () => resolve(said));
    input.focus();
  });
}
