// A figure over time as the server tells it (web/timelines.py), made into traces: lines with bands, or a map.

import { escape } from "./charts.js";
import { cut, known, short } from "./format.js";

const LINES_PX = 240;
const ROW_PX = 14;
const FRAME_PX = 64;
const LABEL_PX = 13;
const MOST_LABELS = 40;
/** Room for the names at the ends of lines, of which one letter takes so many pixels. */
const LETTER_PX = 7;
const LONGEST_NAME = 18;
/** Room for the numbers at the left of lines; the same in all figures, so that their times stand below each other. */
const LEFT_PX = 48;
/** Room for a time or a day below a figure. */
const TICK_PX = 90;
const NARROW_PX = 600;
/** A moment on an axis, by how far (ms) its ticks are apart; as the sentences write it. */
export const TICKS = [
  { dtickrange: [null, 59_999], value: "%H:%M:%S\n%-d %b" },
  { dtickrange: [60_000, 86_399_999], value: "%H:%M\n%-d %b" },
  { dtickrange: [86_400_000, "M1"], value: "%-d %b\n%Y" },
  { dtickrange: ["M1", null], value: "%b\n%Y" },
];

/** In which zone times are shown: the viewer's own, or UTC by `tz=UTC` in the address. */
export const isUtc = () => new URLSearchParams(location.search).get("tz") === "UTC";

/** A moment (Unix s) as the clock on the wall shows it, for an axis: Plotly knows no zones. */
export function wall(at, utc = isUtc()) {
  const shift = utc ? 0 : new Date(at * 1000).getTimezoneOffset() * 60;
  return new Date((at - shift) * 1000).toISOString().slice(0, 23).replace("T", " ");
}

/** What `wall` made, back to Unix s. */
export const momentOf = (text, utc = isUtc()) => Date.parse(text.replace(" ", "T") + (utc ? "Z" : "")) / 1000;

/** Pixels at the right of all these figures with lines, for the longest name at the end of one. */
function roomFor(drawings, width) {
  const names = drawings.flatMap(({ lines }) => (lines?.length > 1 ? lines.map(({ name }) => cut(name, LONGEST_NAME)) : []));
  return names.length ? Math.min(width * 0.4, 12 + LETTER_PX * Math.max(...names.map(({ length }) => length))) : 16;
}

/**
 * @param {Object[]} drawings what stands in the page
 * @param {number} width pixels of the place of each
 * @returns {{data: Object[], layout: Object, zooms: boolean}[]}
 */
export function figuresOf(drawings, width) {
  // on a phone there is no room to spare for names that another figure has
  return drawings.map((drawing) => figureOf(drawing, roomFor(width < NARROW_PX ? [drawing] : drawings, width), width));
}

function figureOf(drawing, right, width) {
  const x = Array.from({ length: drawing.count }, (_, place) => wall(drawing.t0 + place * drawing.step));
  const figure = drawing.kind === "cells" ? map(drawing, x) : lines(drawing, x, right);
  figure.layout.xaxis = {
    type: "date",
    range: [wall(drawing.begin), wall(drawing.end)],
    showgrid: false,
    nticks: Math.ceil((width - right) / TICK_PX),
    tickangle: 0,
    tickformatstops: TICKS,
    ...figure.layout.xaxis,
  };
  figure.layout.uirevision = `${drawing.begin} ${drawing.end}`;
  return { ...figure, zooms: true };
}

const said = (value, unit) => (known(value) ? `${short(value)} ${unit}`.trimEnd() : "not measured");

function lines(drawing, x, right) {
  const top = drawing.top ?? highest(drawing) * 1.08;
  const data = drawing.lines.flatMap((line, number) => [
    ...(line.min ? band(line, x, number) : []),
    {
      type: "scatter",
      mode: drawing.count < 3 ? "lines+markers" : "lines",
      x,
      y: line.mean,
      text: line.mean.map((value, place) => hover(line, value, place, drawing.unit)),
      hoverinfo: "text",
      connectgaps: false,
      meta: { line: number },
    },
  ]);
  if (drawing.band) data.unshift(...band(drawing.band, x, null));
  const labels = drawing.lines.length > 1 ? labelsOf(drawing, x, top) : [];
  return {
    data,
    layout: {
      height: LINES_PX,
      hovermode: "x unified",
      margin: { l: LEFT_PX, r: right, t: drawing.marks.length ? 18 : 8 },
      yaxis: { range: [0, top], fixedrange: true, nticks: 5 },
      shapes: [...drawing.gaps.map(gap), ...drawing.marks.map(mark)],
      annotations: [...labels, ...drawing.marks.map(flag)],
    },
  };
}

function hover(line, value, place, unit) {
  const spread = line.min && line.max[place] !== line.min[place] ? ` (${short(line.min[place])}–${short(line.max[place])})` : "";
  return escape(`${line.name}: ${said(value, unit)}${spread}`);
}

function highest({ lines, band }) {
  let most = 0;
  for (const values of [...lines.map((line) => line.max ?? line.mean), band?.max ?? []]) {
    for (const value of values) if (value > most) most = value;
  }
  return most || 1;
}

/** From the least to the most: what a mean hides. A form of its own between two gaps: Plotly fills a line with gaps across them. */
function band({ min, max }, x, number) {
  const along = { x: [], y: [] };
  for (let first = 0; first < x.length; first += 1) {
    if (max[first] === null) continue;
    let end = first;
    while (end < x.length && max[end] !== null) end += 1;
    along.x.push(...x.slice(first, end), ...x.slice(first, end).reverse(), x[first]);
    along.y.push(...max.slice(first, end), ...min.slice(first, end).reverse(), null);
    first = end;
  }
  return [
    {
      type: "scatter",
      mode: "lines",
      ...along,
      hoverinfo: "skip",
      connectgaps: false,
      fill: "toself",
      meta: { band: number },
    },
  ];
}

/** The names at the ends of the lines, none over another. */
function labelsOf({ lines }, x, top) {
  const ends = lines
    .map((line, number) => ({ line, number, place: line.mean.findLastIndex((value) => value !== null) }))
    .filter(({ place }) => place >= 0)
    .map((end) => ({ ...end, y: end.line.mean[end.place] / top }))
    .sort((one, other) => other.y - one.y);
  const apart = LABEL_PX / (LINES_PX - 40);
  let below = Infinity;
  const placed = ends.map((end) => {
    below = Math.min(end.y, below - apart);
    return { ...end, y: below };
  });
  const lowest = Math.min(0, ...placed.map(({ y }) => y));
  return placed.map(({ line, number, y }) => ({
    name: `line ${number}`,
    xref: "paper",
    x: 1,
    xanchor: "left",
    yref: "paper",
    y: Math.min(1, y - lowest),
    yanchor: "middle",
    text: escape(cut(line.name, LONGEST_NAME)),
    showarrow: false,
  }));
}

const gap = ([begin, end]) => ({
  name: "gap",
  type: "rect",
  xref: "x",
  x0: wall(begin),
  x1: wall(end),
  yref: "paper",
  y0: 0,
  y1: 1,
  line: { width: 0 },
  layer: "below",
});

const mark = ({ at }) => ({ name: "mark", type: "line", xref: "x", x0: wall(at), x1: wall(at), yref: "paper", y0: 0, y1: 1 });

const flag = ({ at, count, texts }) => ({
  name: "mark",
  xref: "x",
  x: wall(at),
  yref: "paper",
  y: 1,
  yanchor: "bottom",
  text: count > 1 ? `▾${count}` : "▾",
  hovertext: [wall(at).slice(0, 16), ...texts, ...(count > texts.length ? [`and ${count - texts.length} more`] : [])]
    .map(escape)
    .join("<br>"),
  showarrow: false,
});

function map(drawing, x) {
  const rows = drawing.rows.map((_, place) => place);
  const each = Math.ceil(rows.length / MOST_LABELS);
  const labelled = rows.filter((place) => place % each === 0);
  const trace = {
    type: "heatmap",
    x,
    y: rows,
    z: drawing.values,
    hovertext: drawing.values.map((values, row) =>
      values.map((value, place) => escape(`${drawing.rows[row]}, ${x[place].slice(0, 16)}: ${said(value, drawing.unit)}`)),
    ),
    hoverinfo: "text",
  };
  return {
    data: [trace],
    layout: {
      height: FRAME_PX + Math.max(120, Math.min(900, ROW_PX * rows.length)),
      yaxis: {
        autorange: "reversed",
        fixedrange: true,
        tickmode: "array",
        tickvals: labelled,
        ticktext: labelled.map((place) => escape(cut(drawing.rows[place], 24))),
        showgrid: false,
        zeroline: false,
      },
      coloraxis: { cmin: 0, cmax: drawing.top ?? Math.max(1, ...drawing.values.flat().filter((value) => value !== null)) },
      meta: { ramp: drawing.ramp },
    },
  };
}
