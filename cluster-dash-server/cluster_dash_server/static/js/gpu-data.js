// The GPU charts: drawn here, from the live view of the API.

import * as api from "./api.js";
import { draw, escape, save } from "./charts.js";
import { patchChildren, say } from "./dom.js";
import { cut, gib, known, percent, plural, short, unit } from "./format.js";
import { live } from "./frame.js";
import { drawLegend } from "./legend.js";
import { Cluster, gpuRow, icon, iconLink, stateCounts } from "./rows.js";

const MIB_PER_GIB = 1024;
const MOST_BARS = 160;
const MOST_LABELS = 24;
const LABEL_PX = 32;
const BARS_PX = 220;
const cluster = new Cluster();
const byId = (id) => document.getElementById(id);

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
    words: (gpu) => `${gib(gpu.used_mem)} of ${gib(gpu.total_mem)} GiB`,
    ramp: "memory",
    finding: (found) => `${short(sum(found.map(({ value }) => value)))} GiB in all. Most: ${top(found, (value) => `${short(value)} GiB`)}.`,
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

function top(found, say) {
  const { gpu, value } = found.reduce((best, each) => (each.value > best.value ? each : best));
  return `${nameOf(gpu)}, ${say(value)}`;
}

async function load(signal) {
  cluster.merge(await api.cluster(cluster.version, signal));
  const gpus = cluster.gpus();
  say(byId("sentence"), cluster.summary);
  byId("icon").setAttribute("href", iconLink(icon(cluster.byName())));
  byId("empty").hidden = cluster.hosts.size > 0;
  byId("no-gpu").hidden = gpus.length > 0 || cluster.hosts.size === 0;
  for (const part of ["states", "charts", "fleet"]) byId(part).hidden = gpus.length === 0;
  drawLegend(byId("legend"), stateCounts(cluster.byName()));
  drawTable(gpus);
  if (gpus.length) drawFigures(gpus);
  return cluster.at;
}

function drawTable(gpus) {
  const most = Number(byId("gpus").closest("table").dataset.most);
  const left = gpus.length > most ? `, the first ${most} of them here` : "";
  say(byId("count"), plural(gpus.length, "GPU") + left);
  patchChildren(byId("gpus"), gpus.slice(0, most).map(gpuRow));
}

function drawFigures(gpus) {
  for (const place of document.querySelectorAll(".plot")) {
    const metric = METRICS[place.dataset.metric];
    const live = gpus.filter((gpu) => !gpu.silent);
    const found = live.map((gpu) => ({ gpu, value: metric.value(gpu) })).filter(({ value }) => known(value));
    const unknown = live.length - found.length;
    const said = found.length ? metric.finding(found) : "No GPU that is live reports it.";
    const lack = unknown && found.length ? ` ${unknown} of ${live.length} do not report it.` : "";
    say(byId(`finding-${place.dataset.metric}`), cut(said + lack, 240));
    draw(place, gpus.length <= MOST_BARS ? bars(gpus, metric, place.clientWidth) : cells(gpus, metric));
  }
}

const hover = (gpu, metric) =>
  escape(`${nameOf(gpu)}, ${gpu.state}, ${known(metric.value(gpu)) ? metric.words(gpu) : "not reported"}`);

/** A bar for each GPU, the hosts side by side with a gap between them. */
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
    customdata: gpus.map((gpu) => [gpu.state]),
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
  return { data: [trace], layout };
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

/** A cell for each GPU, a line for each host: for more GPUs than bars can show. */
function cells(gpus, metric) {
  const hosts = [...new Set(gpus.map((gpu) => gpu.host))];
  const places = new Map(hosts.map((host, place) => [host, place]));
  const width = Math.max(...gpus.map((gpu) => gpu.index)) + 1;
  const grid = (value) => hosts.map(() => Array(width).fill(value));
  const z = grid(null);
  const text = grid("");
  for (const gpu of gpus) {
    z[places.get(gpu.host)][gpu.index] = metric.value(gpu);
    text[places.get(gpu.host)][gpu.index] = hover(gpu, metric);
  }
  const step = Math.ceil(hosts.length / MOST_LABELS);
  const labels = hosts.map((host, place) => [host, place]).filter(([, place]) => place % step === 0);
  const trace = { type: "heatmap", z, hovertext: text, hoverinfo: "text", hoverongaps: false, xgap: 1, ygap: 1 };
  const [cmin, cmax] = metric.range ?? [0, Math.max(1, ...gpus.map(metric.value))];
  const layout = {
    height: Math.min(640, Math.max(BARS_PX, 12 * hosts.length)),
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
  return { data: [trace], layout };
}

document.addEventListener("click", ({ target }) => {
  const metric = target.dataset?.saves;
  if (metric) save(document.querySelector(`[data-metric="${metric}"]`), metric);
});

live(load);
