// Pictures on fixed scales over millimetre axes, drawn as the report draws them, with a cursor that all of them share.

const MARGIN = { left: 30, right: 8, top: 6, bottom: 32 };
const TALLEST = 460; // CSS pixels of a plot

export const theme = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

const tables = new Map();

// #rrggbb x 256 -> bytes, once for each scale.
function bytesOf(scale) {
  const key = scale.table.join("");
  if (!tables.has(key)) {
    const bytes = new Uint8ClampedArray(256 * 3);
    scale.table.forEach((colour, n) => {
      const value = parseInt(colour.slice(1), 16);
      bytes.set([value >> 16, (value >> 8) & 255, value & 255], 3 * n);
    });
    tables.set(key, bytes);
  }
  return tables.get(key);
}

// A picture of its own pixels: the colour of a value is the one the report gives it.
export function paint(values, rows, columns, scale, empty) {
  const canvas = document.createElement("canvas");
  canvas.width = columns;
  canvas.height = rows;
  const context = canvas.getContext("2d");
  const image = context.createImageData(columns, rows);
  const table = bytesOf(scale);
  const missing = parseInt(empty.slice(1), 16);
  const span = scale.high - scale.low;
  for (let n = 0; n < rows * columns; n++) {
    const value = values[n];
    if (Number.isNaN(value)) {
      image.data.set([missing >> 16, (missing >> 8) & 255, missing & 255, 255], 4 * n);
      continue;
    }
    const colour = Math.min(255, Math.max(0, Math.floor(((value - scale.low) / span) * 256)));
    image.data[4 * n] = table[3 * colour];
    image.data[4 * n + 1] = table[3 * colour + 1];
    image.data[4 * n + 2] = table[3 * colour + 2];
    image.data[4 * n + 3] = 255;
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

// Whole ticks, at most so many.
export function ticks(low, high, most) {
  const rough = (high - low) / Math.max(1, most);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough * 0.8);
  const found = [];
  for (let tick = Math.ceil(low / step - 1e-9) * step; tick <= high + 1e-9 * step; tick += step) found.push(tick + 0);
  return found;
}

export const signed = (value, digits = 0) => value.toFixed(digits).replace(/^-(?=0(\.0+)?$)/, "").replace("-", "\u2212");

// Sizes a canvas for sharp lines and gives a context in CSS pixels.
export function fit(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  return context;
}

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "class") made.className = value;
    else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value != null) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

// One field with its axes. `axes` = { x0, dx, nx, z0, dz, nz } in mm (or in the unit of `vertical`).
export class Panel {
  constructor({ name, title, note, scale, look, axes, values, smooth = false, aspect = null, vertical = "depth, mm",
    horizontal = "mm", bar = true, over = null, describe = "" }) {
    Object.assign(this, { name, scale, look, axes, values, smooth, aspect, vertical, horizontal, over });
    this.picture = values ? paint(values, axes.nz, axes.nx, scale, look.void) : null;
    this.base = element("canvas", { "data-panel": name });
    this.top = element("canvas", {
      class: "over", tabindex: "0", role: "img", "aria-label": describe || title, "aria-describedby": "readout",
    });
    this.plot = element("div", { class: "plot" }, this.base, this.top);
    this.caption = element("figcaption", {}, element("b", {}, title), note ? element("span", {}, note) : null);
    this.root = element("figure", { class: "panel", "data-name": name }, this.caption, this.plot, bar ? colourBar(scale) : null);
    this.moved = () => {};
    this.top.addEventListener("pointermove", (event) => this.point(event));
    this.top.addEventListener("pointerdown", (event) => this.point(event));
    this.top.addEventListener("keydown", (event) => this.key(event));
    this.width = 0;
    new ResizeObserver(() => {
      const width = Math.floor(this.plot.clientWidth);
      if (width && width !== this.width) {
        this.width = width;
        this.draw();
      }
    }).observe(this.plot);
  }

  get edges() {
    const { x0, dx, nx, z0, dz, nz } = this.axes;
    return { left: x0 - dx / 2, right: x0 + (nx - 0.5) * dx, top: z0 - dz / 2, bottom: z0 + (nz - 0.5) * dz };
  }

  // New values on the same axes, as the carousel shows them.
  show(values) {
    this.values = values;
    this.picture = paint(values, this.axes.nz, this.axes.nx, this.scale, this.look.void);
    if (this.width) this.draw();
  }

  draw() {
    if (!this.picture || !this.width) return;
    const { left, right, top, bottom } = this.edges;
    const room = this.width - MARGIN.left - MARGIN.right;
    const aspect = this.aspect ?? (bottom - top) / (right - left);
    const width = Math.min(room, TALLEST / aspect);
    const height = width * aspect;
    const x = MARGIN.left + (room - width) / 2;
    this.box = { x, y: MARGIN.top, width, height };
    const total = height + MARGIN.top + MARGIN.bottom;
    const context = fit(this.base, this.width, total);
    context.imageSmoothingEnabled = this.smooth;
    context.imageSmoothingQuality = "high";
    context.drawImage(this.picture, x, MARGIN.top, width, height);
    this.axesOf(context);
    if (this.over) {
      context.save();
      context.beginPath();
      context.rect(x, MARGIN.top, width, height);
      context.clip();
      this.over(context, this);
      context.restore();
    }
    this.size = [this.width, total];
    fit(this.top, this.width, total);
    this.cursor(this.at);
  }

  axesOf(context) {
    const { x, y, width, height } = this.box;
    const { left, right, top, bottom } = this.edges;
    context.font = "11px system-ui, sans-serif";
    context.fillStyle = context.strokeStyle = theme("muted");
    context.lineWidth = 1;
    context.textAlign = "center";
    context.textBaseline = "top";
    for (const tick of ticks(left, right, width / 42)) {
      const at = Math.round(this.toX(tick)) + 0.5;
      line(context, at, y + height, at, y + height + 4);
      context.fillText(signed(tick, Number.isInteger(tick) ? 0 : 1), at, y + height + 6);
    }
    context.textAlign = "right";
    context.textBaseline = "middle";
    for (const tick of ticks(top, bottom, height / 26)) {
      const at = Math.round(this.toY(tick)) + 0.5;
      line(context, x - 4, at, x, at);
      context.fillText(signed(tick, Number.isInteger(tick) ? 0 : 1), x - 6, at);
    }
    const [down, across] = [`\u2193 ${this.vertical}`, `\u2192 ${this.horizontal}`];
    context.textBaseline = "alphabetic";
    context.textAlign = "left";
    context.fillText(down, x, y + height + 29);
    if (context.measureText(down).width + context.measureText(across).width + 10 > width) return;
    context.textAlign = "right";
    context.fillText(across, x + width, y + height + 29);
  }

  toX(mm) {
    const { left, right } = this.edges;
    return this.box.x + ((mm - left) / (right - left)) * this.box.width;
  }

  toY(mm) {
    const { top, bottom } = this.edges;
    return this.box.y + ((mm - top) / (bottom - top)) * this.box.height;
  }

  // Value, row and column at a place, null outside.
  valueAt(x, z) {
    const { x0, dx, nx, z0, dz, nz } = this.axes;
    const column = Math.round((x - x0) / dx);
    const row = Math.round((z - z0) / dz);
    if (!(column >= 0 && column < nx && row >= 0 && row < nz)) return null;
    return { row, column, value: this.values[row * nx + column] };
  }

  point(event) {
    if (!this.box) return;
    const frame = this.top.getBoundingClientRect();
    const { left, right, top, bottom } = this.edges;
    const u = (event.clientX - frame.left - this.box.x) / this.box.width;
    const v = (event.clientY - frame.top - this.box.y) / this.box.height;
    if (u < 0 || u >= 1 || v < 0 || v >= 1) return;
    this.moved(left + u * (right - left), top + v * (bottom - top), false);
  }

  key(event) {
    const { x0, dx, nx, z0, dz, nz } = this.axes;
    const step = event.shiftKey ? 10 : 1;
    const by = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key];
    if (!by && event.key !== "Home") return;
    event.preventDefault();
    const middle = [x0 + dx * Math.floor((nx - 1) / 2), z0 + dz * Math.floor((nz - 1) / 2)];
    let [x, z] = this.at && event.key !== "Home" ? this.at : middle;
    if (by && this.at) {
      x = Math.min(x0 + (nx - 1) * dx, Math.max(x0, x0 + dx * (Math.round((x - x0) / dx) + by[0])));
      z = Math.min(z0 + (nz - 1) * dz, Math.max(z0, z0 + dz * (Math.round((z - z0) / dz) + by[1])));
    }
    this.moved(x, z, true);
  }

  // Draw the shared cursor; null hides it.
  cursor(at) {
    this.at = at;
    if (!this.size) return;
    const context = this.top.getContext("2d");
    context.clearRect(0, 0, ...this.size);
    if (!at || !this.box) return;
    const { left, right, top, bottom } = this.edges;
    if (at[0] < left || at[0] > right || at[1] < top || at[1] > bottom) return;
    const [x, y] = [this.toX(at[0]), this.toY(at[1])];
    for (const [colour, width] of [["#10151bb0", 3], ["#ffffff", 1.2]]) {
      context.strokeStyle = colour;
      context.lineWidth = width;
      line(context, this.box.x, y, x - 5, y);
      line(context, x + 5, y, this.box.x + this.box.width, y);
      line(context, x, this.box.y, x, y - 5);
      line(context, x, y + 5, x, this.box.y + this.box.height);
      context.beginPath();
      context.arc(x, y, 4.5, 0, 2 * Math.PI);
      context.stroke();
    }
  }
}

export function line(context, x1, y1, x2, y2) {
  context.beginPath();
  context.moveTo(x1, y1);
  context.lineTo(x2, y2);
  context.stroke();
}

// The scale of a panel: equal colours mean equal values wherever they stand.
export function colourBar(scale) {
  const canvas = element("canvas", { width: "256", height: "1", "aria-hidden": "true" });
  const context = canvas.getContext("2d");
  scale.table.forEach((colour, n) => {
    context.fillStyle = colour;
    context.fillRect(n, 0, 1, 1);
  });
  const percent = scale.high <= 1 && scale.low >= -1;
  const labels = element("div", { class: "ticks" });
  for (const tick of scale.ticks) {
    const label = element("span", {}, signed(percent ? 100 * tick : tick));
    label.style.left = `${(100 * (tick - scale.low)) / (scale.high - scale.low)}%`;
    labels.append(label);
  }
  return element("div", { class: "bar" }, canvas, labels, element("div", { class: "unit" }, scale.label));
}

// One millimetre (five on a wide picture), white with a dark rim so that it reads on every colour.
export function scaleBar(context, panel) {
  const { left, right } = panel.edges;
  const long = right - left < 12 ? 1 : 5;
  const pixels = (panel.box.width * long) / (right - left);
  const x = panel.box.x + 10;
  const y = panel.box.y + panel.box.height - 11;
  const text = `${long} mm`;
  context.font = "600 11px system-ui, sans-serif";
  const wide = context.measureText(text).width;
  context.fillStyle = "#16202bb0";
  context.fillRect(x - 5, y - 9, pixels + wide + 16, 18);
  context.fillStyle = "#ffffff";
  context.fillRect(x, y - 1.5, pixels, 3);
  context.textAlign = "left";
  context.textBaseline = "middle";
  context.fillText(text, x + pixels + 6, y + 0.5);
}

// Dimmed and hatched wherever `inside(column)` says from which depth [mm] on.
export function veil(context, panel, from, look, dim = true) {
  const { x0, dx, nx } = panel.axes;
  const { bottom } = panel.edges;
  const region = new Path2D();
  for (let n = 0; n < nx; n++) {
    const begin = Math.min(bottom, from(n));
    if (begin >= bottom) continue;
    const [a, b] = [panel.toX(x0 + (n - 0.5) * dx), panel.toX(x0 + (n + 0.5) * dx)];
    region.rect(a, panel.toY(begin), b - a + 0.4, panel.toY(bottom) - panel.toY(begin) + 1);
  }
  context.save();
  context.clip(region);
  if (dim) {
    context.globalAlpha = 0.55;
    context.fillStyle = look.dim;
    context.fillRect(panel.box.x, panel.box.y, panel.box.width, panel.box.height);
    context.globalAlpha = 1;
  }
  hatch(context, panel.box, dim ? "#ffffffcc" : "#16202b99");
  context.restore();
}

function hatch(context, { x, y, width, height }, colour) {
  context.strokeStyle = colour;
  context.lineWidth = 0.8;
  for (let d = -height; d < width; d += 9) line(context, x + d, y + height, x + d + height, y);
}

// The dashed line down to which the echoes inform.
export function informedLine(context, panel, depth) {
  const { x0, dx, nx } = panel.axes;
  const { bottom } = panel.edges;
  for (const [colour, width, dash] of [["#ffffff", 3, []], ["#16202b", 1.4, [5, 3]]]) {
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.setLineDash(dash);
    context.beginPath();
    let down = false;
    for (let n = 0; n < nx; n++) {
      if (!(depth[n] < bottom)) {
        down = false;
        continue;
      }
      const [a, b, y] = [panel.toX(x0 + (n - 0.5) * dx), panel.toX(x0 + (n + 0.5) * dx), panel.toY(depth[n])];
      if (down) context.lineTo(a, y);
      else context.moveTo(a, y);
      context.lineTo(b, y);
      down = true;
    }
    context.stroke();
  }
  context.setLineDash([]);
}

// Columns that cannot be quantified.
export function voidColumns(context, panel, valid, look) {
  const { x0, dx } = panel.axes;
  context.fillStyle = look.void;
  valid.forEach((known, n) => {
    if (known) return;
    const [a, b] = [panel.toX(x0 + (n - 0.5) * dx), panel.toX(x0 + (n + 0.5) * dx)];
    context.fillRect(a, panel.box.y, b - a + 0.4, panel.box.height);
  });
}

export function polyline(context, panel, points, colour, width, dash = []) {
  context.strokeStyle = colour;
  context.lineWidth = width;
  context.setLineDash(dash);
  context.beginPath();
  points.forEach(([x, z], n) => (n ? context.lineTo(panel.toX(x), panel.toY(z)) : context.moveTo(panel.toX(x), panel.toY(z))));
  context.stroke();
  context.setLineDash([]);
}
