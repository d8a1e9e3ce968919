"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const tip = document.getElementById("tip");
const plots = [...document.querySelectorAll(".plot")];
const map = document.querySelector(".map");
const cell = map.querySelector(".cell");
const labels = [...document.querySelectorAll(".sites li")];
const steps = data.cells.length;
const sites = data.sites.length;

function make(tag, text, kind) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (kind) node.className = kind;
  return node;
}

const three = (value) => value.toFixed(value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2);

function quantity(value) {
  for (const [size, unit] of [[1e12, " T"], [1e9, " G"], [1e6, " M"], [1e3, " k"]]) {
    if (value >= 0.9995 * size) return three(value / size) + unit;
  }
  return String(value);
}

const percent = (part, whole) => (whole ? (100 * part) / whole : 100).toFixed(1) + "%";
const time = (value) => three(value) + " ms";
const loss = (value) => (value && value < 1e-4 ? value.toExponential(3) : value.toPrecision(4));

function methodLine(number) {
  const line = make("div", undefined, "method");
  line.append(make("i", undefined, "swatch m" + number), make("b", data.methods[number]));
  line.append(make("small", " " + data.words[number]));
  return line;
}

function lossTable(step, site) {
  const tried = data.losses[step][site];
  if (!tried.length) return make("div", step ? "no candidate was tried" : "step 0 is never compressed", "soft");
  const limit = data.thresholds && data.thresholds[site];
  const table = make("table");
  const head = table.createTHead().insertRow();
  for (const words of ["tried", "loss", ""]) head.append(make("th", words));
  const body = table.createTBody();
  for (const [method, found] of tried) {
    const row = body.insertRow();
    if (method === data.cells[step][site]) row.className = "used";
    row.append(make("td", data.methods[method]), make("td", loss(found)));
    if (limit) row.append(make("td", (found < limit ? "under " : "over ") + loss(limit)));
  }
  return table;
}

function aboutCell(step, site) {
  const nodes = [make("b", "step " + step), make("div", data.sites[site], "site")];
  nodes.push(methodLine(data.cells[step][site]));
  if (data.losses) nodes.push(lossTable(step, site));
  if (data.target && data.gated[site].length) {
    const names = data.gated[site].map((number) => data.methods[number]).join(", ");
    nodes.push(make("div", "never tried, not faster than full on " + data.target + ": " + names, "soft"));
  }
  if (data.spent) {
    const spent = data.spent[step][site];
    const full = data.full[site];
    const words = quantity(spent) + " of " + quantity(full) + " multiply-adds, " + percent(spent, full);
    nodes.push(make("div", words));
    if (spent > full) nodes.push(make("div", "it keeps a residual for later windows", "soft"));
  }
  if (data.buckets) nodes.push(make("div", "bucket " + data.buckets[step], "soft"));
  return nodes;
}

function aboutWork(step) {
  const nodes = [make("b", "step " + step), make("div", quantity(data.totals[step]) + " multiply-adds")];
  if (!data.spent) return nodes;
  nodes.push(make("div", percent(data.totals[step], data.whole) + " of an uncompressed step", "soft"));
  const sums = data.methods.map(() => [0, 0]);
  data.cells[step].forEach((method, site) => {
    sums[method][0] += 1;
    sums[method][1] += data.spent[step][site];
  });
  const table = make("table");
  sums.forEach(([count, spent], method) => {
    if (!count) return;
    const row = table.insertRow();
    const name = make("td");
    name.append(make("i", undefined, "swatch m" + method), data.methods[method]);
    row.append(name, make("td", quantity(spent)), make("td", count + (count > 1 ? " sites" : " site")));
  });
  const row = table.insertRow();
  const name = make("td");
  name.append(make("i", undefined, "swatch rest"), "rest");
  row.append(name, make("td", quantity(data.rests[step])));
  nodes.push(table);
  return nodes;
}

function aboutLatency(step) {
  const [median, low, high, predicted] = data.latency[step];
  return [
    make("b", "step " + step),
    make("div", time(median) + " measured"),
    make("div", "quartiles " + time(low) + " … " + time(high), "soft"),
    make("div", time(predicted) + " predicted"),
    make("div", "bucket " + data.buckets[step], "soft"),
  ];
}

function showTip(nodes, x, y) {
  tip.replaceChildren(...nodes);
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = x + 18 + box.width > innerWidth - 8 ? x - 18 - box.width : x + 18;
  const top = Math.min(y + 14, innerHeight - box.height - 8);
  tip.style.left = Math.max(8, Math.min(left, innerWidth - box.width - 8)) + "px";
  tip.style.top = Math.max(8, top) + "px";
}

function place(node, step, site, rows) {
  node.style.left = (100 * step) / steps + "%";
  node.style.width = 100 / steps + "%";
  node.style.top = (100 * site) / rows + "%";
  node.style.height = 100 / rows + "%";
  node.classList.add("on");
}

function point(lane, step, site, x, y) {
  const columns = plots.map((plot) => plot.querySelector(".column"));
  columns.forEach((column) => place(column, step, 0, 1));
  labels.forEach((label, number) => label.classList.toggle("on", lane === "map" && number === site));
  cell.classList.remove("on");
  if (lane === "map") place(cell, step, site, sites);
  const about = { map: aboutCell, work: aboutWork, latency: aboutLatency }[lane];
  showTip(about(step, site), x, y);
}

function leave() {
  tip.hidden = true;
  document.querySelectorAll(".column, .cell, .sites li").forEach((node) => node.classList.remove("on"));
}

const within = (value, count) => Math.max(0, Math.min(count - 1, Math.floor(value * count)));

for (const plot of plots) {
  plot.prepend(make("i", undefined, "column"));
  const follow = (event) => {
    const box = plot.getBoundingClientRect();
    const step = within((event.clientX - box.left) / box.width, steps);
    const site = within((event.clientY - box.top) / box.height, sites);
    if (plot === map) chosen = [step, site];
    point(plot.dataset.lane, step, site, event.clientX, event.clientY);
  };
  plot.addEventListener("pointermove", follow);
  plot.addEventListener("pointerdown", follow);
  plot.addEventListener("pointerleave", leave);
}

let chosen = [0, 0];

function pointAtChosen() {
  const [step, site] = chosen;
  const lanes = map.closest(".lanes");
  let box = map.getBoundingClientRect();
  const middle = box.left + ((step + 0.5) / steps) * box.width;
  const frame = lanes.getBoundingClientRect();
  const hidden = map.closest(".lane").querySelector(".gutter").offsetWidth;
  if (middle > frame.right) lanes.scrollLeft += middle - frame.right + 40;
  if (middle < frame.left + hidden) lanes.scrollLeft -= frame.left + hidden - middle + 40;
  box = map.getBoundingClientRect();
  point("map", step, site, box.left + ((step + 1) / steps) * box.width - 10, box.top + ((site + 0.5) / sites) * box.height);
}

map.addEventListener("keydown", (event) => {
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1], Home: [-steps, 0], End: [steps, 0] };
  const move = moves[event.key];
  if (event.key === "Escape") leave();
  if (!move) return;
  event.preventDefault();
  chosen = [Math.max(0, Math.min(steps - 1, chosen[0] + move[0])), Math.max(0, Math.min(sites - 1, chosen[1] + move[1]))];
  pointAtChosen();
});
map.addEventListener("focus", () => { if (map.matches(":focus-visible")) pointAtChosen(); });
map.addEventListener("blur", leave);

for (const item of document.querySelectorAll(".legend li")) {
  const path = map.querySelector("path.m" + item.dataset.method);
  const light = (on) => () => {
    map.classList.toggle("dim", on);
    if (path) path.classList.toggle("lit", on);
  };
  item.addEventListener("pointerenter", light(true));
  item.addEventListener("pointerleave", light(false));
}

for (const dot of document.querySelectorAll("[data-tip]")) {
  const show = () => {
    const box = dot.getBoundingClientRect();
    showTip([make("div", dot.dataset.tip)], box.right - 8, box.top);
  };
  dot.addEventListener("pointerenter", show);
  dot.addEventListener("focus", show);
  dot.addEventListener("pointerleave", leave);
  dot.addEventListener("blur", leave);
}

const theme = document.getElementById("theme");
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (document.documentElement.dataset.theme || (prefersDark.matches ? "dark" : "light")) === "dark";
const nameTheme = () => { theme.textContent = isDark() ? "Light" : "Dark"; };
theme.addEventListener("click", () => {
  document.documentElement.dataset.theme = isDark() ? "light" : "dark";
  nameTheme();
});
prefersDark.addEventListener("change", nameTheme);
nameTheme();
theme.hidden = false;

const frame = document.querySelector(".frame");
if (frame) {
  const slider = frame.querySelector("input");
  const thumbs = [...document.querySelectorAll(".thumbs button")];
  slider.addEventListener("input", () => frame.style.setProperty("--cut", slider.value + "%"));
  for (const thumb of thumbs) {
    thumb.addEventListener("click", () => {
      thumbs.forEach((other) => other.setAttribute("aria-pressed", String(other === thumb)));
      const [before, after] = thumb.querySelectorAll("img");
      frame.querySelector(".before").src = before.src;
      frame.querySelector(".after").src = after.src;
      document.getElementById("caption").textContent = thumb.title;
    });
  }
}
