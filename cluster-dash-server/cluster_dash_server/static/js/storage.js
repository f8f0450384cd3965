// What this browser keeps of a reader: the theme, the name, whether keys are on. Where storage is forbidden, nothing.

const said = new Map();

export function kept(name) {
  try {
    return localStorage.getItem(name) ?? said.get(name) ?? null;
  } catch {
    return said.get(name) ?? null;
  }
}

export function keep(name, value) {
  said.set(name, value);
  try {
    localStorage.setItem(name, value);
  } catch {
    // it holds for this page
  }
}
