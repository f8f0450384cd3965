// The GPU charts: drawn here, from the live view of the API. A figure that is not in sight is not drawn.

import * as api from "./api.js";
import { asked, here, listen } from "./address.js";
import { draw, escape, save } from "./charts.js";
import { Cluster, isLastKnown, isMissing } from "./cluster.js";
import { h, patchChildren, say } from "./dom.js";
import { drawFrame, drawLegend, drawScope, startBox } from "./filter.js";
import { amount, cut, DASH, known, percent, plural, short, unit, usedOf } from "./format.js";
import { live } from "./frame.js";
import { gpuRow, icon, iconLink, stateCounts } from "./rows.js";
import { isUtc, TICKS } from "./timeline.js";

const MIB_PER_GIB = 1024;
const MOST_BARS = 160;
const MOST_CELLS = 8000;
const BINS = 10;
const MOST_LABELS = 24;
const MOST_PANELS = 8;
const MOST_LINES = 16;
const MOST_POINTS = 800;
const LABEL_PX = 32;
const BARS_PX = 220;
/** How much of the height of a cell its dash leaves free. */
const DASH_GAP = 0.6;
const PANEL_PX = 180;
const PAST = "now-1h";
/** What the axis of a panel shows at least, before more was seen: of one moment alone Plotly would show milliseconds. */
const LEAST_MS = 300_000;
const byId = (id) => document.getElementById(id);
let cluster = new Cluster();
let facets = null;

/** What each figure draws of a GPU, its words, and its finding over all GPUs that report it. */
const METRICS = {
  gpu_util: {
    value: (gpu) => gpu.gpu_util,
    words: (gpu) => `busy ${percent(gpu.gpu_util)}`,
    ramp: "busy",
    range: [0, 100],
    finding: (found) => `Mean ${percent(mean(found.map(({ value }) => value)))}. Highest: ${top(found, percent)}.`,
  },
  used_mem: {
    value: (gpu) => (known(gpu.used_mem) ? gpu.used_mem / MIB_PER_GIB : null),
    words: (gpu) => usedOf(gpu.used_mem, gpu.total_mem),
    ramp: "memory",
    finding: (found) => `${amount(MIB_PER_GIB * sum(found.map(({ value }) => value)))} in all. Most: ${top(found, (value) => `${short(value)} GiB`)}.`,
  },
  temperature_c: {
    value: (gpu) => gpu.temperature_c,
    words: (gpu) => unit(gpu.temperature_c, "°C"),
    ramp: "heat",
    finding: (found) => `Hottest: ${top(found, (value) => unit(value, "°C"))}.`,
  },
  power_w: {
    value: (gpu) => gpu.power_w,
    words: (gpu) => unit(gpu.power_w, "W"),
    ramp: "heat",
    finding: (found) => `${unit(sum(found.map(({ value }) => value)), "W")} in all. Most: ${top(found, (value) => unit(value, "W"))}.`,
  },
};

const sum = (values) => values.reduce((total, value) => total + value, 0);
const mean = (values) => sum(values) / values.length;
const nameOf = (gpu) => `${gpu.host} GPU ${gpu.index}`;

function top(found, words) {
  const { gpu, value } = found.reduce((best, each) => (each.value > best.value ? each : best));
  return `${nameOf(gpu)}, ${words(value)}`;
}

async function load(signal) {
  const q = asked("q");
  const isNew = cluster.q !== q;
  const [body, choices] = await Promise.all([
    api.cluster(api.CHARTS, isNew ? null : cluster.version, q, signal),
    q ? api.facets(q, signal) : null,
  ]);
  if (isNew) cluster = new Cluster(q);
  cluster.merge(body);
  facets = choices;
  redraw();
  return cluster.at;
}

function redraw() {
  const gpus = cluster.gpus();
  byId("main").removeAttribute("aria-busy");
  say(byId("sentence"), cluster.summary);
  byId("icon").setAttribute("href", iconLink(icon(cluster.narrowed())));
  drawFrame();
  drawScope(cluster);
  const isEmpty = cluster.hosts.size === 0 && !cluster.of?.hosts;
  byId("empty").hidden = !isEmpty;
  byId("no-gpu").hidden = gpus.length > 0 || isEmpty;
  byId("states").hidden = isEmpty;
  for (const part of ["charts", "panels", "fleet"]) byId(part).hidden = gpus.length === 0;
  drawLegend(stateCounts(cluster.narrowed()), facets);
  drawTable(gpus);
  if (!gpus.length) return;
  remember(gpus);
  drawPanels(gpus);
  for (const place of document.querySelectorAll("#charts .plot")) offer(place, () => overall(place, gpus));
}

function drawTable(gpus) {
  const most = Number(byId("gpus").closest("table").dataset.most);
  const left = gpus.length > most ? `, the first ${most} of them here` : "";
  say(byId("count"), plural(gpus.length, "GPU") + left);
  patchChildren(byId("gpus"), gpus.slice(0, most).map(gpuRow));
}

// ------------------------------------------------------------------------------------------- only what is in sight

const waiting = new WeakMap();
const inSight = new WeakSet();
const sight = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) inSight.add(target);
      else inSight.delete(target);
      if (isIntersecting) offer(target, waiting.get(target));
    }
  },
  { rootMargin: "200px" },
);

/** Draw a figure when it is seen: now, or once somebody scrolls there. */
function offer(place, figure) {
  if (!waiting.has(place)) sight.observe(place);
  waiting.set(place, figure);
  if (inSight.has(place)) figure();
}

// --------------------------------------------------------------------------------------------- all GPUs, a metric

function overall(place, gpus) {
  const metric = METRICS[place.dataset.metric];
  const reporting = gpus.filter((gpu) => !isLastKnown(gpu));
  const found = reporting.map((gpu) => ({ gpu, value: metric.value(gpu) })).filter(({ value }) => known(value));
  const unknown = reporting.length - found.length;
  const said = found.length ? metric.finding(found) : "No GPU that is live reports it.";
  const lack = unknown && found.length ? ` ${unknown} of ${reporting.length} do not report it.` : "";
  say(byId(`finding-${place.dataset.metric}`), cut(said + lack, 240));
  if (gpus.length <= MOST_BARS) draw(place, bars(gpus, metric, place.clientWidth));
  else if (gpus.length <= MOST_CELLS) draw(place, cells(gpus, metric));
  else draw(place, shares(found, metric));
}

function hover(gpu, metric) {
  const words = known(metric.value(gpu)) ? `${isLastKnown(gpu) ? "last known: " : ""}${metric.words(gpu)}` : "not reported";
  return escape(`${nameOf(gpu)}, ${gpu.state}, ${words}`);
}

/** A bar for each GPU, the hosts side by side with a gap between them. One without a figure has a dash. */
function bars(gpus, metric, width) {
  const x = [];
  const hosts = new Map();
  for (const gpu of gpus) {
    if (!hosts.has(gpu.host)) hosts.set(gpu.host, []);
    const place = x.length + hosts.size - 1;
    x.push(place);
    hosts.get(gpu.host).push(place);
  }
  const trace = {
    type: "bar",
    x,
    y: gpus.map(metric.value),
    hovertext: gpus.map((gpu) => hover(gpu, metric)),
    hoverinfo: "text",
    customdata: gpus.map((gpu) => [isLastKnown(gpu) && !isMissing(gpu) ? "silent" : gpu.state]),
  };
  const unknown = gpus.map((_, place) => place).filter((place) => !known(trace.y[place]));
  const dashes = {
    type: "scatter",
    mode: "text",
    x: unknown.map((place) => x[place]),
    y: unknown.map(() => 0),
    text: DASH,
    textposition: "top center",
    hovertext: unknown.map((place) => trace.hovertext[place]),
    hoverinfo: "text",
    meta: { form: "dashes" },
  };
  const labels = apart([...hosts].map(([host, places]) => ({ host, at: mean(places) })), (x.at(-1) * LABEL_PX) / width);
  const layout = {
    height: BARS_PX,
    xaxis: {
      tickmode: "array",
      tickvals: labels.map(({ at }) => at),
      ticktext: labels.map(({ host }) => escape(cut(host, 14))),
      tickangle: 30,
      showgrid: false,
      zeroline: false,
    },
    yaxis: { rangemode: "tozero", fixedrange: true, nticks: 5, ...(metric.range && { range: metric.range }) },
  };
  return { data: [trace, dashes], layout };
}

/** The labels that stand at least so far from the one before. */
function apart(labels, distance) {
  let last = -Infinity;
  return labels.filter(({ at }) => {
    const fits = at - last >= distance;
    if (fits) last = at;
    return fits;
  });
}

/** The top of a scale; a loop, for a call takes so many arguments only. */
const most = (values) => values.reduce((best, value) => Math.max(best, value ?? 0), 1);

/** A cell for each GPU, a line for each host: for more GPUs than bars can show. One without a figure of now has a dash. */
function cells(gpus, metric) {
  const hosts = [...new Set(gpus.map((gpu) => gpu.host))];
  const places = new Map(hosts.map((host, place) => [host, place]));
  const width = most(gpus.map((gpu) => gpu.index)) + 1;
  const grid = (value) => hosts.map(() => Array(width).fill(value));
  const z = grid(null);
  const dashes = grid(null);
  const text = grid("");
  for (const gpu of gpus) {
    const value = isLastKnown(gpu) ? null : metric.value(gpu);
    (known(value) ? z : dashes)[places.get(gpu.host)][gpu.index] = value ?? 1;
    text[places.get(gpu.host)][gpu.index] = hover(gpu, metric);
  }
  const step = Math.ceil(hosts.length / MOST_LABELS);
  const labels = hosts.map((host, place) => [host, place]).filter(([, place]) => place % step === 0);
  const height = Math.min(640, Math.max(BARS_PX, 12 * hosts.length));
  const trace = { type: "heatmap", hovertext: text, hoverinfo: "text", hoverongaps: false, xgap: 1, ygap: 1 };
  const [cmin, cmax] = metric.range ?? [0, most(z.flat())];
  const layout = {
    height,
    xaxis: { showgrid: false, zeroline: false, title: { text: "GPU" } },
    yaxis: {
      autorange: "reversed",
      tickmode: "array",
      tickvals: labels.map(([, place]) => place),
      ticktext: labels.map(([host]) => escape(cut(host, 14))),
      showgrid: false,
      zeroline: false,
    },
    coloraxis: { cmin, cmax },
    meta: { ramp: metric.ramp },
  };
  const dash = { ...trace, z: dashes, ygap: (DASH_GAP * height) / hosts.length, meta: { form: "dashes" } };
  return { data: [{ ...trace, z }, dash], layout };
}

/** How many GPUs of each model have which figure: for more GPUs than cells can show. */
function shares(found, metric) {
  const [low, high] = metric.range ?? [0, most(found.map(({ value }) => value))];
  const models = [...new Set(found.map(({ gpu }) => gpu.model))].sort();
  const z = models.map(() => Array(BINS).fill(0));
  for (const { gpu, value } of found) {
    const bin = Math.min(BINS - 1, Math.floor(((value - low) / (high - low || 1)) * BINS));
    z[models.indexOf(gpu.model)][bin] += 1;
  }
  const edge = (bin) => short(low + (bin * (high - low)) / BINS);
  const text = z.map((line, place) =>
    line.map((number, bin) => escape(`${plural(number, "GPU")} ${models[place]}: ${edge(bin)} to ${edge(bin + 1)}`)),
  );
  const layout = {
    height: Math.min(640, Math.max(BARS_PX, 60 + 24 * models.length)),
    xaxis: {
      tickmode: "array",
      tickvals: z[0]?.map((_, bin) => bin) ?? [],
      ticktext: z[0]?.map((_, bin) => `${edge(bin)}–${edge(bin + 1)}`) ?? [],
      showgrid: false,
      zeroline: false,
    },
    yaxis: {
      tickmode: "array",
      tickvals: models.map((_, place) => place),
      ticktext: models.map((model) => escape(cut(model, 14))),
      showgrid: false,
      zeroline: false,
    },
    coloraxis: { cmin: 0, cmax: most(z.flat()) },
    meta: { ramp: metric.ramp },
  };
  return { data: [{ type: "heatmap", z, hovertext: text, hoverinfo: "text", xgap: 1, ygap: 1 }], layout };
}

// ----------------------------------------------------------------------------------------- hosts, each by its lines

/** What was seen of the GPUs of the hosts that have a panel: `host/key` to moments (ms) and values by metric. */
const past = new Map();
const filledUp = new Set();
const keepsHistory = document.documentElement.dataset.history !== undefined;
const panelMetric = () => (METRICS[asked("metric")] ? asked("metric") : "gpu_util");
const keyOf = (gpu) => `${gpu.host}/${gpu.key}`;

/** The hosts that have a panel. */
function panelled(gpus) {
  const hosts = new Map();
  for (const gpu of gpus) {
    if (!hosts.has(gpu.host) && hosts.size === MOST_PANELS) break;
    if (!hosts.has(gpu.host)) hosts.set(gpu.host, []);
    hosts.get(gpu.host).push(gpu);
  }
  return hosts;
}

function remember(gpus) {
  const kept = [...panelled(gpus).values()].flat();
  const keys = new Set(kept.map(keyOf));
  for (const key of past.keys()) if (!keys.has(key)) past.delete(key);
  for (const gpu of kept) {
    const key = keyOf(gpu);
    if (!past.has(key)) past.set(key, { t: [], ...Object.fromEntries(Object.keys(METRICS).map((name) => [name, []])) });
    const lines = past.get(key);
    const at = cluster.at * 1000;
    if (lines.t.at(-1) >= at) continue;
    lines.t.push(at);
    // a silent host's last figures are not what is: the line has a gap
    for (const [name, { value }] of Object.entries(METRICS)) lines[name].push(isLastKnown(gpu) ? null : value(gpu));
    if (lines.t.length > MOST_POINTS) for (const column of Object.values(lines)) column.shift();
  }
}

function drawPanels(gpus) {
  const hosts = panelled(gpus);
  const all = new Set(gpus.map((gpu) => gpu.host)).size;
  const some = all > hosts.size ? `The first ${hosts.size} of ${all} hosts: filter to see others.` : "";
  say(byId("panels-words"), some);
  const metric = panelMetric();
  for (const link of document.querySelectorAll("#panels [data-metric-link]")) {
    link.setAttribute("href", here({ metric: link.dataset.metricLink }));
    if (link.dataset.metricLink === metric) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
  patchChildren(byId("panel-list"), [...hosts].map(([host, of]) => panel(host, of, METRICS[metric])));
  for (const place of document.querySelectorAll("#panel-list .plot")) {
    const of = hosts.get(place.closest("figure").dataset.key);
    offer(place, () => lines(place, of, metric));
  }
}

function panel(host, gpus, metric) {
  const found = gpus.map((gpu) => ({ gpu, value: isLastKnown(gpu) ? null : metric.value(gpu) })).filter(({ value }) => known(value));
  const said = found.length ? metric.finding(found).replaceAll(`${host} `, "") : "Reports nothing now.";
  return h(
    "figure",
    { class: "chart panel", "data-key": host },
    h("figcaption", {}, h("a", { class: "name", href: api.hostLink(host) }, cut(host, 40)), h("span", { class: "quiet" }, cut(said, 120))),
    h("div", { class: "plot", "data-keep": "", style: `height:${PANEL_PX}px`, role: "img", "aria-label": `${host}: ${cut(said, 120)}` }),
  );
}

function lines(place, gpus, metric) {
  fillUp(gpus[0].host, metric);
  const shown = gpus.slice(0, MOST_LINES);
  // Plotly shows a number as a moment in the reader's own zone
  const drawnAt = isUtc() ? (at) => at + new Date(at).getTimezoneOffset() * 60_000 : (at) => at;
  const data = shown.map((gpu) => {
    const { t, [metric]: y } = past.get(keyOf(gpu));
    return {
      type: "scatter",
      mode: t.length > 1 ? "lines" : "markers",
      x: t.map(drawnAt),
      y,
      name: `GPU ${gpu.index}`,
      hovertemplate: `GPU ${gpu.index}: %{y:.0f}<extra></extra>`,
      connectgaps: false,
      cliponaxis: false, // the newest point stands at the end
      meta: { line: gpu.index },
    };
  });
  const range = METRICS[metric].range;
  const layout = {
    height: PANEL_PX,
    xaxis: {
      type: "date",
      nticks: 4,
      tickangle: 0,
      tickformatstops: TICKS,
      autorangeoptions: { include: [cluster.at * 1000 - LEAST_MS, cluster.at * 1000].map(drawnAt) },
    },
    yaxis: { rangemode: "tozero", fixedrange: true, nticks: 4, ...(range && { range }) },
    hovermode: "closest",
  };
  draw(place, { data, layout });
}

/** Put what history knows of a host in front of what was seen since this page was opened. */
async function fillUp(host, metric) {
  const which = `${host}/${metric}`;
  if (filledUp.has(which) || !keepsHistory) return;
  filledUp.add(which);
  let body;
  try {
    body = await api.series({ metric, host, from: PAST }, AbortSignal.timeout(10_000));
  } catch {
    return; // without history the lines begin now
  }
  const scale = metric === "used_mem" ? 1 / MIB_PER_GIB : 1;
  for (const { gpu: index, t, mean: means } of body.series) {
    const gpu = cluster.hosts.get(host)?.gpus.find((each) => each.index === index);
    const seen = gpu && past.get(`${host}/${gpu.key}`);
    if (!seen || !t.length) continue;
    const first = means.findIndex(known);
    const before = t
      .map((at, place) => [at * 1000, means[place]])
      .filter(([at], place) => first >= 0 && place >= first && at < (seen.t[0] ?? Infinity));
    for (const [name, column] of Object.entries(seen)) {
      if (name === "t") column.unshift(...before.map(([at]) => at));
      else column.unshift(...before.map(([, value]) => (name === metric && known(value) ? value * scale : null)));
    }
  }
}

document.addEventListener("click", ({ target }) => {
  const metric = target.dataset?.saves;
  if (metric) save(document.querySelector(`#charts [data-metric="${metric}"]`), metric);
});

startBox();
const poll = live(load);
listen(() => {
  drawFrame();
  if (asked("q") === cluster.q && cluster.version !== null) {
    redraw();
    return;
  }
  byId("main").setAttribute("aria-busy", "true");
  poll.now();
});
