// Small charts in SVG: the column profile with its interval, and aeration on a 0-100 % line.

import { element, signed, ticks } from "./panels.js";

const SVG = "http://www.w3.org/2000/svg";

export function svg(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) if (value != null) made.setAttribute(key, value);
  made.append(...children.filter((child) => child != null));
  return made;
}

export const percent = (fraction, digits = 0) => signed(100 * fraction, digits);

// Steps of consecutive known points, so that columns without a number leave a gap.
function runs(xs, known) {
  const found = [];
  let run = [];
  xs.forEach((_, n) => {
    if (known(n)) run.push(n);
    else if (run.length) {
      found.push(run);
      run = [];
    }
  });
  if (run.length) found.push(run);
  return found;
}

// Aeration of each column over the map's depth.
export class Profile {
  constructor({ axes, level, profile, lower, upper, truth, valid, moved }) {
    this.axes = axes;
    this.held = { level, profile, lower, upper, truth, valid };
    this.plot = element("div", { class: "plot" });
    this.root = element("figure", { class: "profile", "data-name": "profile" },
      element("figcaption", {}, element("b", {}, "Aeration of each column"),
        element("span", {}, lower ? `mean over depth; band: ${percent(level)} % interval` : "mean over depth")), this.plot);
    this.moved = moved;
    this.sample = null;
    this.width = 0;
    new ResizeObserver(() => {
      if (this.plot.clientWidth && this.plot.clientWidth !== this.width) {
        this.width = this.plot.clientWidth;
        this.draw();
      }
    }).observe(this.plot);
  }

  draw() {
    const { x0, dx, nx } = this.axes;
    const [left, right, top, bottom, height] = [36, 10, 8, 34, 168];
    const [low, high] = [x0 - dx / 2, x0 + (nx - 0.5) * dx];
    const width = this.width;
    const inner = width - left - right;
    this.toX = (mm) => left + ((mm - low) / (high - low)) * inner;
    const toY = (f) => top + (1 - f) * (height - top - bottom);
    const xs = Array.from({ length: nx }, (_, n) => x0 + n * dx);
    const path = (values, from = runs(xs, (n) => Number.isFinite(values[n]))) =>
      from.map((run) => "M" + run.map((n) => `${this.toX(xs[n]).toFixed(1)},${toY(values[n]).toFixed(1)}`).join("L")).join("");
    const { profile, lower, upper, truth, valid } = this.held;
    const known = (n) => !valid || valid[n];
    const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": "Aeration of each column with its interval" });
    for (const f of [0, 0.25, 0.5, 0.75, 1]) {
      root.append(svg("line", { class: "rule", x1: left, x2: width - right, y1: toY(f), y2: toY(f) }));
      root.append(svg("text", { class: "tick end", x: left - 6, y: toY(f) + 4 }, `${100 * f}`));
    }
    for (const tick of ticks(low, high, inner / 60)) {
      root.append(svg("line", { class: "axis", x1: this.toX(tick), x2: this.toX(tick), y1: height - bottom, y2: height - bottom + 4 }));
      root.append(svg("text", { class: "tick mid", x: this.toX(tick), y: height - bottom + 16 }, signed(tick)));
    }
    root.append(svg("text", { class: "tick end", x: width - right, y: height - 4 }, "lateral position, mm"));
    root.append(svg("text", { class: "tick", x: left, y: height - 4 }, "% air"));
    if (lower && upper) {
      for (const run of runs(xs, known)) {
        const there = run.map((n) => `${this.toX(xs[n]).toFixed(1)},${toY(upper[n]).toFixed(1)}`);
        const back = run.map((n) => `${this.toX(xs[n]).toFixed(1)},${toY(lower[n]).toFixed(1)}`).reverse();
        root.append(svg("path", { class: "band", d: `M${[...there, ...back].join("L")}Z` }));
      }
    }
    if (this.sample) root.append(svg("path", { class: "sample-line", d: path(this.sample) }));
    if (truth) root.append(svg("path", { class: "truth-line", d: path(truth) }));
    root.append(svg("path", { class: "estimate-line", d: path(profile) }));
    this.mark = svg("line", { class: "cursor-line", y1: top, y2: height - bottom, visibility: "hidden" });
    root.append(this.mark);
    root.addEventListener("pointermove", (event) => {
      const at = low + ((event.clientX - root.getBoundingClientRect().left - left) / inner) * (high - low);
      if (at > low && at < high) this.moved(at);
    });
    this.plot.replaceChildren(root);
    this.cursor(this.at);
  }

  show(sample) {
    this.sample = sample;
    if (this.width) this.draw();
  }

  cursor(x) {
    this.at = x;
    if (!this.mark) return;
    this.mark.setAttribute("visibility", x == null ? "hidden" : "visible");
    if (x != null) for (const end of ["x1", "x2"]) this.mark.setAttribute(end, this.toX(x));
  }
}

// Interval, estimate and truth on a 0-100 % line.
export function track(band, prior = false) {
  const line = element("span", { class: prior ? "track prior" : "track" });
  const place = (name, from, to = null) => {
    const mark = element("i", { class: name });
    const clip = (f) => 100 * Math.min(1, Math.max(0, f));
    mark.style.left = `${clip(from)}%`;
    if (to != null) mark.style.right = `${100 - clip(to)}%`;
    line.append(mark);
  };
  if (band.lower != null && band.upper != null) place("range", band.lower, band.upper);
  if (band.truth != null) place("true", band.truth);
  if (band.estimate != null) place("dot", band.estimate);
  return line;
}

export function axisLabels(marks = [0, 25, 50, 75, 100]) {
  const line = element("span", { class: "axis-labels", "aria-hidden": "true" });
  for (const mark of marks) {
    const label = element("span", {}, `${mark}`);
    label.style.left = `${mark}%`;
    line.append(label);
  }
  return line;
}

// One dot for each posterior sample, the chosen one ringed; a click chooses.
export class Swarm {
  constructor({ values, band, chosen }) {
    this.values = values;
    this.plot = element("div", { class: "swarm" });
    this.band = band;
    this.chosen = chosen;
    this.current = 0;
    this.width = 0;
    new ResizeObserver(() => {
      if (this.plot.clientWidth && this.plot.clientWidth !== this.width) {
        this.width = this.plot.clientWidth;
        this.draw();
      }
    }).observe(this.plot);
  }

  draw() {
    const [left, right, radius] = [8, 8, 4];
    const inner = this.width - left - right;
    const toX = (f) => left + f * inner;
    const columns = new Map();
    const places = Array.from(this.values, (value) => {
      const column = Math.round(toX(value) / (2 * radius + 1));
      const level = columns.get(column) ?? 0;
      columns.set(column, level + 1);
      return [column * (2 * radius + 1), level];
    });
    const tall = Math.max(3, ...columns.values());
    const floor = tall * (2 * radius + 1) + 8;
    const height = floor + 22;
    const root = svg("svg", { viewBox: `0 0 ${this.width} ${height}`, width: this.width, height, role: "img", "aria-label": "Percent aeration of every sample" });
    const { lower, upper, truth } = this.band;
    if (lower != null) root.append(svg("rect", { class: "band", x: toX(lower), width: Math.max(1, toX(upper) - toX(lower)), y: 2, height: floor - 2 }));
    root.append(svg("line", { class: "axis", x1: left, x2: this.width - right, y1: floor, y2: floor }));
    for (const f of [0, 0.25, 0.5, 0.75, 1]) {
      root.append(svg("line", { class: "axis", x1: toX(f), x2: toX(f), y1: floor, y2: floor + 4 }));
      root.append(svg("text", { class: `tick ${f === 0 ? "" : f === 1 ? "end" : "mid"}`, x: toX(f) + (f === 0 ? -4 : f === 1 ? 4 : 0), y: floor + 17 }, f === 1 ? "100 %" : `${100 * f}`));
    }
    if (truth != null) root.append(svg("line", { class: "truth-line", x1: toX(truth), x2: toX(truth), y1: 2, y2: floor }));
    this.dots = places.map(([x, level], n) => {
      const dot = svg("circle", { class: "dot", cx: x, cy: floor - 5 - level * (2 * radius + 1), r: radius });
      dot.addEventListener("click", () => this.chosen(n));
      root.append(dot);
      return dot;
    });
    this.plot.replaceChildren(root);
    this.show(this.current);
  }

  show(number) {
    this.current = number;
    this.dots?.forEach((dot, n) => dot.classList.toggle("now", n === number));
  }
}
