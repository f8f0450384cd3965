// All GPUs on one canvas: a small square each, its state by colour and by shape; arrow keys walk, Enter opens.

import { hostLink } from "./api.js";
import { say } from "./dom.js";
import { cellLabel } from "./rows.js";

const ACROSS = 8;
const GAP_PX = 4;
const LARGEST_PX = 26;
const SMALLEST_PX = 5;
const MOST_HEIGHT_PX = 900;
const HEAD_PX = 22;
const root = document.documentElement;

export class FleetMap {
  /** @param {HTMLCanvasElement} canvas @param {HTMLElement} words says what is pointed at */
  constructor(canvas, words) {
    this.canvas = canvas;
    this.words = words;
    this.groups = [];
    this.places = [];
    this.at = 0;
    this.now = 0;
    canvas.addEventListener("pointermove", (event) => this.point(this.under(event)));
    canvas.addEventListener("click", (event) => this.open(this.under(event)));
    canvas.addEventListener("focus", () => this.point(this.places[this.at]));
    canvas.addEventListener("keydown", (event) => this.walk(event));
    new ResizeObserver(() => this.draw()).observe(canvas.parentElement);
    root.addEventListener("themechange", () => this.draw());
  }

  /** @param {{name: string, hosts: import("./cluster.js").Host[]}[]} groups @param {number} now Unix s */
  show(groups, now) {
    this.groups = groups;
    this.now = now;
    this.draw();
  }

  /** Find the largest squares with which all of them fit. */
  size(width) {
    for (let size = LARGEST_PX; size > SMALLEST_PX; size -= 1) {
      if (this.height(size, width) <= MOST_HEIGHT_PX) return size;
    }
    return SMALLEST_PX;
  }

  height(size, width) {
    return this.groups.reduce((sum, group) => sum + HEAD_PX + layOut(group.hosts, size, width).height, 0);
  }

  draw() {
    const width = this.canvas.parentElement.clientWidth;
    if (!width) return;
    const size = this.size(width);
    const height = Math.max(HEAD_PX, this.height(size, width));
    const scale = devicePixelRatio;
    if (this.canvas.width !== Math.round(width * scale) || this.canvas.height !== Math.round(height * scale)) {
      this.canvas.width = Math.round(width * scale);
      this.canvas.height = Math.round(height * scale);
      this.canvas.style.height = `${height}px`;
    }
    const pen = this.canvas.getContext("2d");
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.clearRect(0, 0, width, height);
    const colours = palette();
    this.places = [];
    let top = 0;
    for (const group of this.groups) {
      pen.fillStyle = colours.text;
      pen.font = `600 12px ${getComputedStyle(root).getPropertyValue("--text-font")}`;
      pen.fillText(group.name, 0, top + 14, width);
      top += HEAD_PX;
      const { places, height: below } = layOut(group.hosts, size, width);
      for (const place of places) {
        place.y += top;
        paint(pen, place, size - 1, colours);
        this.places.push(place);
      }
      top += below;
    }
    this.squarePx = size;
    this.canvas.setAttribute("aria-label", `Map of ${this.places.length} GPUs; arrow keys walk, Enter opens the host`);
  }

  under({ offsetX, offsetY }) {
    const size = this.squarePx;
    return this.places.find(({ x, y }) => offsetX >= x && offsetX < x + size && offsetY >= y && offsetY < y + size);
  }

  point(place) {
    this.canvas.style.cursor = place ? "pointer" : "default";
    if (!place) return;
    this.at = this.places.indexOf(place);
    say(this.words, cellLabel(place.host, place.gpu, this.now));
  }

  open(place) {
    if (place) location.assign(`${hostLink(place.host.host)}#gpu-${place.gpu.index}`);
  }

  walk(event) {
    if (event.key === "Enter") return this.open(this.places[this.at]);
    const here = this.places[this.at];
    if (!here) return undefined;
    const line = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const next = line ? nearest(this.places, here, line) : step && this.places[this.at + step];
    if (line || step) event.preventDefault();
    if (next) this.point(next);
    return undefined;
  }
}

/** The next square above or below another one. */
function nearest(places, here, sign) {
  const beyond = places.filter(({ y }) => sign * (y - here.y) > 0);
  const distance = ({ x, y }) => Math.abs(y - here.y) * 10_000 + Math.abs(x - here.x);
  return beyond.reduce((best, each) => (best === null || distance(each) < distance(best) ? each : best), null);
}

/** Lay hosts side by side, each a block of eight squares across. */
function layOut(hosts, size, width) {
  const block = ACROSS * size + GAP_PX;
  const across = Math.max(1, Math.floor((width + GAP_PX) / block));
  const places = [];
  let top = 0;
  for (let first = 0; first < hosts.length; first += across) {
    const line = hosts.slice(first, first + across);
    line.forEach((host, column) =>
      host.gpus.forEach((gpu, index) => {
        const x = column * block + (index % ACROSS) * size;
        places.push({ host, gpu, x, y: top + Math.floor(index / ACROSS) * size });
      }),
    );
    top += Math.max(...line.map((host) => Math.ceil(host.gpus.length / ACROSS) || 1)) * size + GAP_PX;
  }
  return { places, height: top };
}

function palette() {
  const style = getComputedStyle(root);
  const colour = (name) => style.getPropertyValue(`--${name}`).trim();
  const states = ["free", "busy", "held", "error", "down", "drained", "stale", "unknown"];
  return {
    text: colour("text"),
    bg: colour("bg"),
    hairline: colour("hairline"),
    ...Object.fromEntries(states.map((state) => [state, { ink: colour(`${state}-ink`), tint: colour(`${state}-tint`) }])),
  };
}

/** Draw a GPU: free is hollow, busy full as far as it is busy, held half, error with a hole, down crossed, stale barred. */
function paint(pen, { gpu, x, y }, size, colours) {
  if (gpu.matches === false) {
    pen.fillStyle = colours.hairline;
    pen.fillRect(x + size / 2 - 1, y + size / 2 - 1, 2, 2);
    return;
  }
  const { ink, tint } = colours[gpu.state];
  pen.fillStyle = gpu.state === "free" ? colours.bg : tint;
  pen.fillRect(x, y, size, size);
  pen.fillStyle = ink;
  pen.strokeStyle = ink;
  pen.lineWidth = 1;
  const shape = SHAPES[gpu.state];
  shape(pen, x, y, size, gpu, colours);
}

const frame = (pen, x, y, size) => pen.strokeRect(x + 0.5, y + 0.5, size - 1, size - 1);

const SHAPES = {
  free: frame,
  busy(pen, x, y, size, gpu) {
    const height = Math.max(1, Math.round((size * (gpu.gpu_util ?? 100)) / 100));
    pen.fillRect(x, y + size - height, size, height);
  },
  held(pen, x, y, size) {
    frame(pen, x, y, size);
    pen.fillRect(x, y, Math.ceil(size / 2), size);
  },
  error(pen, x, y, size, gpu, colours) {
    pen.fillRect(x, y, size, size);
    pen.fillStyle = colours.bg;
    pen.fillRect(x + size / 2 - 1, y + 1, 2, size - 2);
  },
  down(pen, x, y, size) {
    lines(pen, [x, y, x + size, y + size], [x + size, y, x, y + size]);
  },
  drained(pen, x, y, size) {
    frame(pen, x, y, size);
    lines(pen, [x, y + size / 2, x + size, y + size / 2]);
  },
  stale(pen, x, y, size) {
    lines(pen, [x, y + size, x + size, y]);
  },
  unknown(pen, x, y, size) {
    pen.fillRect(x + size / 2 - 1, y + size / 2 - 1, 2, 2);
  },
};

function lines(pen, ...each) {
  pen.beginPath();
  for (const [fromX, fromY, toX, toY] of each) {
    pen.moveTo(fromX, fromY);
    pen.lineTo(toX, toY);
  }
  pen.stroke();
}
