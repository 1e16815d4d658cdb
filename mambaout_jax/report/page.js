"use strict";

const CHARTS = {
  macs: { keys: ["macs", "printed_macs"], axis: "multiply-accumulates (10⁹)", unit: "G\u00a0MACs" },
  parameters: { keys: ["parameters", "printed_parameters"], axis: "parameters (10⁶)", unit: "M parameters" },
  speed: { keys: ["speed"], axis: "images per second", unit: "images/s" },
};
const MARGIN = { left: 38, right: 12, top: 10, bottom: 38 };
const MARK = 4.5, EMPHASISED_MARK = 7; // pixels from the middle of a mark to its edge
const REACH = 26; // pixels from a mark at which it is pointed at
const GAPS = [3, 10]; // pixels from a mark to its name, which takes the first place that is free
const EMPHASISED_GAPS = [3, 8, 14, 20, 28, 36]; // of a name that is always written

// Shapes by token mixer, of half a side r.
const SHAPES = [
  (r) => `M${-r} 0A${r} ${r} 0 1 0 ${r} 0A${r} ${r} 0 1 0 ${-r} 0Z`,
  (r) => `M0 ${-1.3 * r}L${1.3 * r} 0L0 ${1.3 * r}L${-1.3 * r} 0Z`,
  (r) => `M0 ${-1.2 * r}L${1.15 * r} ${0.85 * r}H${-1.15 * r}Z`,
  (r) => `M${-0.9 * r} ${-0.9 * r}H${0.9 * r}V${0.9 * r}H${-0.9 * r}Z`,
  (r) => `M0 ${1.2 * r}L${1.15 * r} ${-0.85 * r}H${-1.15 * r}Z`,
];

const body = document.querySelector("tbody");
const rows = [...body.rows].map((tr) => {
  const values = {};
  for (const cell of tr.querySelectorAll("[data-key][data-value]")) values[cell.dataset.key] = Number(cell.dataset.value);
  return {
    tr, values,
    order: Number(tr.querySelector(".order").dataset.value),
    model: tr.querySelector("th").textContent,
    mixer: Number(tr.dataset.mixer),
    mixerName: tr.querySelector("td.mixer").textContent.trim(),
    emphasised: tr.classList.contains("emphasised"),
  };
});
const drawn = []; // { row, mark } of all charts

function element(name, attributes, parent, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return parent.appendChild(made);
}

/* Sorting: what is not known stands last either way, equals in the order of the paper. */
function sortBy(head) {
  const ascending = head.getAttribute("aria-sort") !== "ascending";
  for (const other of document.querySelectorAll("th[aria-sort]")) other.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  const key = head.dataset.key;
  const value = { order: (row) => row.order, model: (row) => row.model.toLowerCase(), mixer: (row) => row.mixer }[key]
    ?? ((row) => row.values[key]);
  const sorted = [...rows].sort((one, other) => {
    const a = value(one), b = value(other);
    if (a === b) return one.order - other.order;
    if (a === undefined || b === undefined) return a === undefined ? 1 : -1;
    return (a < b ? -1 : 1) * (ascending ? 1 : -1);
  });
  body.append(...sorted.map((row) => row.tr));
  const title = head.querySelector("button").firstChild.textContent;
  news.textContent = `sorted by ${title}, ${ascending ? "ascending" : "descending"}`;
}

function filter() {
  const boxes = [...document.querySelectorAll("input[name=mixer]")];
  for (const row of rows) row.tr.hidden = !boxes[row.mixer].checked;
  shown.textContent = `${rows.filter((row) => !row.tr.hidden).length} of ${rows.length} models`;
  drawAll();
}

/* Scales. Ticks of a logarithmic axis are 1, 2 and 5 times powers of ten. */
function scales(points, width, height) {
  const xs = points.map((p) => p.x), ys = points.map((p) => p.row.values.top1);
  const [low, high] = [Math.log(Math.min(...xs) / 1.15), Math.log(Math.max(...xs) * 1.15)];
  const [bottom, top] = [Math.floor(Math.min(...ys) - 0.5), Math.ceil(Math.max(...ys) + 0.3)];
  const right = width - MARGIN.right, base = height - MARGIN.bottom;
  const x = (value) => MARGIN.left + ((Math.log(value) - low) / (high - low)) * (right - MARGIN.left);
  const y = (value) => base - ((value - bottom) / (top - bottom)) * (base - MARGIN.top);
  const xTicks = [];
  for (let power = -3; power < 7; power++)
    for (const digit of [1, 2, 5]) {
      const value = Number(`${digit}e${power}`);
      if (Math.log(value) >= low && Math.log(value) <= high) xTicks.push(value);
    }
  const step = top - bottom > 8 ? 2 : 1;
  const yTicks = [];
  for (let value = Math.ceil(bottom / step) * step; value <= top; value += step) yTicks.push(value);
  return { x, y, xTicks, yTicks, right, base };
}

function draw(figure) {
  const chart = CHARTS[figure.dataset.chart], plot = figure.querySelector(".plot");
  const measured = rows.some((row) => chart.keys.some((key) => key in row.values));
  const points = [];
  for (const row of rows) {
    const key = chart.keys.find((each) => each in row.values);
    if (key && !row.tr.hidden) points.push({ row, x: row.values[key], published: key.startsWith("printed") });
  }
  plot.replaceChildren();
  if (!points.length) {
    const note = plot.appendChild(document.createElement("p"));
    note.textContent = measured ? "The filter leaves no model." : "Not measured. The same command does it without \u2011\u2011quick.";
    return;
  }
  const width = Math.max(plot.clientWidth, 240), height = Math.round(Math.min(500, Math.max(340, width * 0.75)));
  const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, height, tabindex: 0, role: "group",
    "aria-roledescription": "chart", "aria-label": `${figure.querySelector("h2").textContent}, ${points.length} models; arrow keys read them` }, plot);
  const scale = scales(points, width, height);
  drawAxes(svg, scale, chart);
  for (const p of points) [p.left, p.top] = [scale.x(p.x), scale.y(p.row.values.top1)];
  points.sort((one, other) => one.left - other.left);
  const line = points.filter((p) => p.row.emphasised);
  const steps = line.map((p) => `${p.left} ${p.top}`).join("L");
  if (line.length > 1) element("path", { class: "mambaout", d: `M${steps}` }, svg);
  for (const p of [...points].sort((one, other) => one.row.emphasised - other.row.emphasised)) {
    const kind = `mark mixer-${p.row.mixer}${p.row.emphasised ? " emphasised" : ""}${p.published ? " published" : ""}`;
    p.mark = element("path", { class: kind, d: SHAPES[p.row.mixer](p.row.emphasised ? EMPHASISED_MARK : MARK),
      transform: `translate(${p.left} ${p.top})` }, svg);
    drawn.push({ row: p.row, mark: p.mark });
  }
  drawNames(svg, points, line, scale);
  listen(figure, svg, points, chart);
}

function drawAxes(svg, { x, y, xTicks, yTicks, right, base }, chart) {
  for (const value of yTicks) {
    element("line", { class: "grid", x1: MARGIN.left, x2: right, y1: y(value), y2: y(value) }, svg);
    element("text", { x: MARGIN.left - 7, y: y(value) + 4, "text-anchor": "end" }, svg, value);
  }
  for (const value of xTicks) {
    element("line", { class: "grid", x1: x(value), x2: x(value), y1: MARGIN.top, y2: base }, svg);
    element("text", { x: x(value), y: base + 15, "text-anchor": "middle" }, svg, value.toLocaleString("en"));
  }
  element("text", { x: (MARGIN.left + right) / 2, y: base + 33, "text-anchor": "middle" }, svg, chart.axis);
  element("text", { transform: `translate(10 ${(MARGIN.top + base) / 2}) rotate(-90)`, "text-anchor": "middle" }, svg, "top-1 accuracy, published (%)");
}

/* Names: MambaOut's always, then those that no other model beats at their cost, then what has room. */
function drawNames(svg, points, line, scale) {
  const context = document.createElement("canvas").getContext("2d");
  const family = getComputedStyle(document.body).fontFamily;
  const taken = points.map((p) => box(p.left, p.top, p.row.emphasised ? EMPHASISED_MARK : MARK + 1));
  for (let i = 1; i < line.length; i++)
    for (let t = 0; t <= 1; t += 0.02)
      taken.push(box(line[i - 1].left + t * (line[i].left - line[i - 1].left), line[i - 1].top + t * (line[i].top - line[i - 1].top), 1.5));
  const faster = svg.closest("figure").dataset.chart === "speed"; // more is better there
  const beaten = (p) => points.some((q) => q.top < p.top && (faster ? q.left >= p.left : q.left <= p.left));
  const crowd = (p) => points.filter((q) => Math.hypot(q.left - p.left, q.top - p.top) < 40).length;
  const rank = (p) => (p.row.emphasised ? 0 : beaten(p) ? 10 + crowd(p) : 1);
  for (const p of [...points].sort((one, other) => rank(one) - rank(other))) {
    const bold = p.row.emphasised;
    context.font = `${bold ? "700 12px" : "10.5px"} ${family}`;
    const width = context.measureText(p.row.model).width + 2, height = bold ? 14 : 12;
    const places = placesOf(p, width, height);
    const hidden = places.map((place) => taken.reduce((sum, other) => sum + overlap(place, other), 0) + outside(place, scale));
    const best = hidden.indexOf(Math.min(...hidden));
    if (!bold && hidden[best] > 0) continue;
    taken.push(places[best]);
    element("text", { class: bold ? "name emphasised" : "name", x: places[best].left + 1, y: places[best].bottom - 3 }, svg, p.row.model);
  }
}

function box(x, y, half) {
  return { left: x - half, right: x + half, top: y - half, bottom: y + half };
}

function placesOf(p, width, height) {
  const places = [];
  for (const gap of p.row.emphasised ? EMPHASISED_GAPS : GAPS) {
    const away = (p.row.emphasised ? EMPHASISED_MARK : MARK) + gap;
    const lefts = { right: p.left + away, left: p.left - away - width, middle: p.left - width / 2 };
    const tops = { above: p.top - away - height, below: p.top + away, beside: p.top - height / 2 };
    for (const [side, level] of [["right", "beside"], ["left", "beside"], ["middle", "above"], ["middle", "below"],
      ["right", "above"], ["right", "below"], ["left", "above"], ["left", "below"]])
      places.push({ left: lefts[side], right: lefts[side] + width, top: tops[level], bottom: tops[level] + height });
  }
  return places;
}

function overlap(one, other) {
  const width = Math.min(one.right, other.right) - Math.max(one.left, other.left);
  const height = Math.min(one.bottom, other.bottom) - Math.max(one.top, other.top);
  return Math.max(width, 0) * Math.max(height, 0);
}

function outside(place, scale) {
  const frame = { left: MARGIN.left, right: scale.right + MARGIN.right, top: 0, bottom: scale.base };
  return (place.right - place.left) * (place.bottom - place.top) - overlap(place, frame) > 0.01 ? 1e6 : 0;
}

/* Pointing at a mark, with a pointer or the arrow keys, shows its model everywhere. */
function listen(figure, svg, points, chart) {
  let current = -1;
  const show = (index) => {
    current = index;
    select(points[index]?.row);
    tell(figure, points[index], chart);
  };
  svg.addEventListener("pointermove", (event) => {
    const frame = svg.getBoundingClientRect();
    const distances = points.map((p) => Math.hypot(p.left - (event.clientX - frame.left), p.top - (event.clientY - frame.top)));
    const nearest = distances.indexOf(Math.min(...distances));
    show(distances[nearest] <= REACH ? nearest : -1);
  });
  svg.addEventListener("pointerleave", () => show(-1));
  svg.addEventListener("blur", () => show(-1));
  svg.addEventListener("click", () => current >= 0 && goTo(points[current].row));
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
    if (step) {
      event.preventDefault();
      show(current < 0 ? 0 : (current + step + points.length) % points.length);
      news.textContent = figure.querySelector(".tooltip").textContent;
    } else if (event.key === "Enter" && current >= 0) goTo(points[current].row);
    else if (event.key === "Escape") show(-1);
  });
}

function select(row) {
  for (const each of rows) each.tr.classList.toggle("selected", each === row);
  for (const each of drawn) each.mark.classList.toggle("selected", each.row === row);
}

function goTo(row) {
  row.tr.scrollIntoView({ block: "center", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
}

function tell(figure, point, chart) {
  figure.querySelector(".tooltip")?.remove();
  if (!point) return;
  const tooltip = figure.appendChild(document.createElement("div"));
  tooltip.className = "tooltip";
  tooltip.appendChild(document.createElement("strong")).textContent = point.row.model;
  const value = point.x >= 100 ? Math.round(point.x).toLocaleString("en") : Number(point.x.toPrecision(3));
  tooltip.append(` ${point.row.mixerName}, ${point.row.values.top1}\u00a0% top-1, ${value}\u00a0${chart.unit}${point.published ? ", as published" : ""}`);
  const plot = figure.querySelector("svg"), space = figure.clientWidth - tooltip.offsetWidth - 4;
  tooltip.style.left = `${Math.max(4, Math.min(space, plot.parentElement.offsetLeft + point.left - tooltip.offsetWidth / 2))}px`;
  const above = plot.parentElement.offsetTop + point.top - tooltip.offsetHeight - 8;
  tooltip.style.top = `${above > 0 ? above : above + tooltip.offsetHeight + 30}px`;
}

function drawAll() {
  drawn.length = 0;
  for (const figure of document.querySelectorAll("figure")) {
    figure.querySelector(".tooltip")?.remove();
    draw(figure);
  }
}

const shown = document.getElementById("shown"), news = document.getElementById("news");
for (const swatch of document.querySelectorAll(".swatch")) {
  const mixer = Number(swatch.getAttribute("class").match(/mixer-(\d)/)[1]);
  element("path", { d: SHAPES[mixer](5), transform: "translate(7 7)" }, swatch);
}
for (const head of document.querySelectorAll("th[data-key]"))
  head.querySelector("button").addEventListener("click", () => sortBy(head));
for (const input of document.querySelectorAll("input[name=mixer]")) input.addEventListener("change", filter);
for (const row of rows) {
  row.tr.addEventListener("pointerenter", () => select(row));
  row.tr.addEventListener("pointerleave", () => select());
}
let width = 0;
new ResizeObserver(() => {
  if (width === document.body.clientWidth) return;
  width = document.body.clientWidth;
  drawAll();
}).observe(document.body);
filter();
