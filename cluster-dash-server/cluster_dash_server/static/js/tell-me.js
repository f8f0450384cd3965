// The form "tell me when some are free": it begins with the filter that the page shows.

import { asked } from "./address.js";

const box = document.getElementById("tell-me");
const field = box.querySelector("[name=q]");
let isOwn = false; // what somebody typed there stays

field.addEventListener("input", () => {
  isOwn = true;
});
box.addEventListener("toggle", () => {
  if (!isOwn) field.value = asked("q");
});
