// CPU, memory, disk and load: figures of the server, which come with the page.

import { draw, save } from "./charts.js";
import { live, momentOf, redraw } from "./frame.js";

const plot = () => document.getElementById("plot");

/** Draw the figure that stands in a page. */
function show(page) {
  const figure = page.getElementById("figure");
  if (figure && plot()) draw(plot(), JSON.parse(figure.textContent));
}

document.addEventListener("click", ({ target }) => {
  if (target.dataset?.opens) {
    target.setAttribute("aria-expanded", String(target.getAttribute("aria-expanded") !== "true"));
  } else if (target.dataset?.saves) {
    save(plot(), target.dataset.saves);
  }
});

show(document);
live(async (signal) => {
  const fresh = await redraw(signal);
  show(document);
  return momentOf(fresh);
});
