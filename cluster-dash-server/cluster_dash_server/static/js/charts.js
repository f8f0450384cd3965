// The only module that knows Plotly. A figure says by its role what it is; here it gets colours, and a place.

/* global Plotly */

const root = document.documentElement;
const drawn = new Map();
const zooming = new WeakSet();
const narrow = matchMedia("(max-width: 760px)");
const RAMP_STEPS = 6;
const LINE_HUES = 4;
const MARKERS = ["circle", "square", "triangle-up", "diamond"];

// Without these Plotly's own bar holds "Share chart…", which uploads the chart, host and user names included.
const CONFIG = { displayModeBar: false, showSendToCloud: false, plotlyServerURL: "", responsive: true, doubleClick: "reset" };

const colour = (name) => getComputedStyle(root).getPropertyValue(`--${name}`).trim();
const ramp = (name) => Array.from({ length: RAMP_STEPS }, (_, step) => [step / (RAMP_STEPS - 1), colour(`${name}-ramp-${step}`)]);

/** What stands in `customdata` of a bar, and its colour: a level, silence, or the state of a GPU. */
const COLOURS_OF_BARS = {
  calm: "busy-ink",
  high: "held-ink",
  full: "error-ink",
  silent: "stale-ink",
};

/** Make a name from outside inert in a label: Plotly reads pseudo-HTML, links and formulas in texts. */
export const escape = (text) =>
  text.replace(/[&<>$]/g, (sign) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", $: "&#36;" })[sign]);

/**
 * Draw a figure into an element, or change the one that is there; zoom survives.
 * @param {HTMLElement} place
 * @param {{data: Object[], layout: Object}} figure as the server or a page made it: roles, no colours
 */
export function draw(place, figure) {
  drawn.set(place, figure);
  const height = `${figure.layout.height}px`;
  if (place.style.height !== height) place.style.height = height;
  const config = figure.zooms ? { ...CONFIG, doubleClick: false } : CONFIG;
  return Plotly.react(place, figure.data.map(paint), frame(figure), config);
}

/**
 * Say when a reader drags over a figure, once it is drawn; `closer` gets both ends of the axis as it writes them.
 * @param {HTMLElement} place
 * @param {(begin: string, end: string) => void} closer
 * @param {() => void} back is called for a double click
 */
export function onZoom(place, closer, back) {
  if (zooming.has(place)) return;
  zooming.add(place);
  place.on("plotly_relayout", (change) => {
    if (change["xaxis.range[0]"] !== undefined) closer(change["xaxis.range[0]"], change["xaxis.range[1]"]);
  });
  place.on("plotly_doubleclick", back);
}

/** Save a figure as a PNG file, in the browser. */
export const save = (place, name) => Plotly.downloadImage(place, { format: "png", filename: name, width: 1280, height: place.offsetHeight });

const BAND_ALPHA = "2b";
/** The colour of a line by its number; null: of all lines together. */
const hue = (number) => colour(number === null ? "muted" : `line-${number % LINE_HUES}`);

/** Shapes and annotations say by their name what they are: a gap, a mark, the name of a line. */
function paintMark(each) {
  const [role, number] = (each.name ?? "").split(" ");
  if (role === "gap") return { ...each, fillcolor: colour("hairline"), opacity: 0.6 };
  if (role === "percentile" && each.type === "line") return { ...each, line: { color: colour("muted"), width: 1, dash: "dot" } };
  if (role === "mark" && each.type === "line") return { ...each, line: { color: colour("held-ink"), width: 1, dash: "dot" } };
  // it stands among the bars
  if (role === "percentile") return { ...each, font: { color: colour("text"), size: 12 }, bgcolor: colour("bg") };
  const ink = role === "line" ? hue(Number(number)) : role === "mark" ? colour("held-text") : colour("muted");
  return { ...each, font: { color: ink, size: 12 } };
}

/** A hue alone tells too few people which bar is which. */
const HATCHES = { held: "/", drained: "\\", error: "x", silent: "." };

/** A dot for each of many hosts, of which the highest have a name and a label. */
const isDots = (trace) => trace.meta?.form === "dots";
const isLabelled = (trace) => trace.orientation === "h" || isDots(trace);

function paint(trace) {
  if (trace.meta?.form === "dashes") return { ...trace, colorscale: [0, 1].map((end) => [end, colour("stale-ink")]), showscale: false };
  if (trace.type === "heatmap") return { ...trace, coloraxis: "coloraxis" };
  if (trace.meta && "band" in trace.meta) return { ...trace, line: { width: 0 }, fillcolor: hue(trace.meta.band) + BAND_ALPHA };
  if (trace.type === "scatter" && !isDots(trace)) return { ...trace, ...line(trace.meta.line) };
  const labelled = isLabelled(trace);
  const names = trace.customdata.map(([says]) => COLOURS_OF_BARS[says] ?? `${says}-ink`);
  return {
    ...trace,
    marker: {
      color: names.map(colour),
      opacity: trace.customdata.map(([says]) => (says === "silent" ? 0.6 : 1)),
      ...(trace.type === "bar" && { pattern: { shape: trace.customdata.map(([says]) => HATCHES[says] ?? ""), size: 4, solidity: 0.5 } }),
    },
    text: labelled && narrow.matches ? trace.text.map((text, place) => text && trace.customdata[place][1]) : trace.text,
    textposition: isDots(trace) ? trace.textposition : labelled ? "outside" : "none",
    cliponaxis: false,
  };
}

/** 8 GPUs are 4 hues by 2 dashes, and a marker each: a hue alone tells too few people which is which. */
function line(number) {
  const ink = colour(`line-${number % LINE_HUES}`);
  const dash = Math.floor(number / LINE_HUES) % 2 ? "dash" : "solid";
  return { line: { color: ink, dash, width: 1.5 }, marker: { color: ink, symbol: MARKERS[number % LINE_HUES], size: 6 } };
}

function frame({ data, layout }) {
  const labelled = data.some(isLabelled);
  const axis = {
    color: colour("muted"),
    gridcolor: colour("hairline"),
    linecolor: colour("hairline"),
    zerolinecolor: colour("border"),
    automargin: true,
  };
  const framed = {
    ...layout,
    uirevision: layout.uirevision ?? "constant",
    shapes: layout.shapes?.map(paintMark),
    annotations: layout.annotations?.map(paintMark),
    paper_bgcolor: colour("bg"),
    plot_bgcolor: colour("bg"),
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("text") },
    hoverlabel: { bgcolor: colour("surface"), bordercolor: colour("border"), font: { color: colour("text") }, align: "left" },
    margin: { l: 8, r: !labelled ? 16 : narrow.matches ? 64 : 170, t: 8, b: 8, ...layout.margin },
    xaxis: { ...axis, ...layout.xaxis },
    yaxis: { ...axis, ...layout.yaxis },
    bargap: 0.25,
    showlegend: false,
  };
  if (labelled && narrow.matches) framed.yaxis.ticktext = layout.meta.short_names;
  if (layout.coloraxis) {
    framed.coloraxis = {
      ...layout.coloraxis,
      colorscale: ramp(layout.meta.ramp),
      colorbar: { thickness: 8, outlinewidth: 0, tickfont: { color: colour("muted") } },
    };
  }
  return framed;
}

function again() {
  for (const [place, figure] of drawn) draw(place, figure);
}

root.addEventListener("themechange", again);
narrow.addEventListener("change", again);
