// Runs before the first paint (a classic script in the head), so that a chosen theme never flashes in the other one.
(() => {
  const root = document.documentElement;
  root.classList.add("js");
  try {
    const chosen = localStorage.getItem("theme");
    if (chosen === "light" || chosen === "dark") root.dataset.theme = chosen;
  } catch {
    // storage may be forbidden: the system's wish stands
  }
})();
