// The legend: all states, always there, with how many GPUs each holds.

import { say } from "./dom.js";

/**
 * @param {HTMLElement} legend
 * @param {Map<string, number>} counts
 */
export function drawLegend(legend, counts) {
  for (const chip of legend.children) {
    const count = counts.get(chip.dataset.state) ?? 0;
    say(chip.querySelector("b"), String(count));
    chip.toggleAttribute("data-none", count === 0);
  }
}
