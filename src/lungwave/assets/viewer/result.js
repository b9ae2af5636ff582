// One reconstruction: the number with its interval, the four pictures with one cursor, the samples, the profile.

import { axisLabels, percent, Profile, Swarm, track } from "./charts.js";
import { element, informedLine, line, paint, Panel, polyline, scaleBar, signed, veil, voidColumns } from "./panels.js";

const FRAMES_A_SECOND = 4;
const MM = 1000; // of a metre

export class ResultView {
  constructor(root, live) {
    this.root = root;
    this.live = live;
    this.playing = null;
  }

  show(job, { facts, arrays }) {
    this.stop();
    this.job = job;
    this.facts = facts;
    this.all = arrays;
    this.frame(0);
  }

  // Everything of one frame of the recording.
  frame(number) {
    this.stop();
    this.number = number;
    this.one = this.facts.frames[number];
    this.at = null;
    this.current = 0;
    this.panels = [];
    this.strip = this.swarm = this.profile = null;
    const { table } = this.one;
    this.root.replaceChildren(
      ...[this.heading(table), this.warnings(table), table.withheld ? this.withheld(table) : this.numbers(table), this.pictures(table),
        this.samples(table), this.below(table)].filter(Boolean),
    );
    this.update();
  }

  array(name) {
    return this.all[`${this.number}/${name}`];
  }

  heading(table) {
    const { title, model, samples, calls, note, frames } = this.facts;
    const how = [model, samples ? `${samples} samples of ${calls ?? "–"} calls` : null, note].filter(Boolean).join(" · ");
    this.download = element("a", { class: "button soft", id: "download", href: `/api/jobs/${this.job.id}/report`, download: "lungwave-report.html" }, "Download report");
    const choose = frames.length > 1
      ? element("label", { class: "frames" }, "Frame ", element("select", { id: "frame", onchange: (event) => this.frame(+event.target.value) },
        ...frames.map((_, n) => element("option", { value: n, selected: n === this.number }, `${n + 1} of ${frames.length}`))))
      : null;
    return element("header", { class: "title" },
      element("div", {}, element("h1", {}, title), element("p", { class: "quiet" }, how)),
      element("div", { class: "actions" }, choose, this.download));
  }

  // Called with every poll, because the report comes a second after the result.
  update(job = this.job) {
    this.job = job;
    if (!this.download) return;
    this.download.classList.toggle("off", !job.report);
    this.download.setAttribute("aria-disabled", String(!job.report));
    this.download.textContent = job.report ? "Download report" : "Writing the report …";
    if (job.report) this.download.setAttribute("href", `/api/jobs/${job.id}/report`);
    else this.download.removeAttribute("href");
  }

  warnings(table) {
    return table.flags.length ? element("ul", { class: "flags" }, ...table.flags.map((flag) => element("li", {}, flag))) : null;
  }

  withheld(table) {
    return element("div", { class: "withheld", id: "withheld" }, element("h2", {}, "Aeration withheld"), element("p", {}, table.withheld));
  }

  numbers(table) {
    const whole = table.whole;
    if (!whole || whole.estimate == null) return element("p", { class: "quiet" }, "No number was given.");
    const truth = whole.truth == null ? null
      : element("p", { class: "truth" }, "truth ", element("b", {}, `${percent(whole.truth)} %`), ", ",
        element("span", { class: whole.inside ? "yes" : "no" }, whole.inside ? "inside" : "outside"));
    const head = element("div", { class: "headline" }, element("div", {},
      element("h2", {}, `Percent aeration, ${whole.top_mm}–${whole.bottom_mm} mm below the pleura`),
      element("p", { class: "big", id: "estimate", "data-value": whole.estimate }, percent(whole.estimate), element("small", {}, "%")),
      element("p", {}, element("b", { id: "interval", "data-lower": whole.lower, "data-upper": whole.upper }, `${percent(whole.lower)}–${percent(whole.upper)} %`),
        element("span", { class: "quiet" }, ` ${percent(table.level)} % interval`)),
      truth), facts(table));
    const known = whole.truth != null;
    const rows = [...table.bands, whole].map((band) => element("tr", { class: band === whole ? "whole" : null },
      element("th", { scope: "row" }, `${band.top_mm}–${band.bottom_mm} mm`),
      element("td", { class: "chart" }, track(band, band.echo_share != null && band.echo_share < 0.5)),
      element("td", {}, element("b", {}, percent(band.estimate)), element("span", { class: "sub" }, `${percent(band.lower)}–${percent(band.upper)}`)),
      known ? element("td", {}, band.truth == null ? "–" : percent(band.truth)) : null,
      element("td", { class: "reach" }, band.echo_share == null ? "–" : `${percent(band.echo_share)} %`)));
    const bands = element("table", { class: "bands" },
      element("thead", {}, element("tr", {}, element("th", {}, "Depth"), element("th", { class: "chart" }, axisLabels()),
        element("th", {}, "% air"), known ? element("th", {}, "Truth") : null, element("th", { class: "reach" }, "Reached by echoes"))),
      element("tbody", {}, ...rows));
    return element("div", { class: "numbers" }, head, element("div", { class: "depths" }, bands,
      element("div", { class: "legend" }, key("dot", "estimate"), key("range", "interval"), known ? key("true", "truth") : null,
        key("prior", "echoes reach less than half"))));
  }

  pictures(table) {
    const look = this.facts;
    const { scales } = look;
    const { bmode, map, rf } = this.one;
    const echo = new Panel({ name: "bmode", title: "B-mode", note: `${Math.round(bmode.range_db)} dB; line: detected pleura`, look,
      scale: { ...scales.bmode, low: -bmode.range_db }, axes: bmode, values: this.array("bmode").data, smooth: true,
      over: (context, panel) => this.onBmode(context, panel), describe: "B-mode image. Arrow keys move the cursor." });
    this.panels.push(echo);
    if (map) {
      const add = (name, title, note, scale, over) => {
        const array = this.array(name);
        if (array) this.panels.push(new Panel({ name, title, note, look, scale, axes: map, values: array.data, over, vertical: "below pleura, mm", describe: `${title}. Arrow keys move the cursor.` }));
      };
      const reach = this.array("information_depth")?.data;
      const valid = this.array("valid")?.data;
      const finish = (context, panel) => {
        if (valid) voidColumns(context, panel, valid, look);
        scaleBar(context, panel);
      };
      const lined = (context, panel) => {
        if (reach) informedLine(context, panel, reach.map((depth) => MM * depth));
        finish(context, panel);
      };
      add("mean", this.array("samples") ? "Posterior mean" : "Reconstructed aeration", "hatched: mostly prior", scales.aeration, (context, panel) => {
        if (reach) veil(context, panel, (n) => (Number.isNaN(reach[n]) ? Infinity : MM * reach[n]), look);
        lined(context, panel);
      });
      add("width", "Uncertainty", `width of the ${percent(table.level)} % interval`, scales.width, lined);
      add("information", "Information", "what the echoes told", scales.information, (context, panel) => {
        this.hatchPoor(context, panel);
        lined(context, panel);
      });
      add("truth", "True aeration", "smoothed, σ = 0.5 mm", scales.aeration, finish);
      add("error", "Error", "red: too much air, blue: too little", scales.error, finish);
    }
    const medium = this.facts.medium;
    if (medium) {
      const air = this.all.air.data;
      this.panels.unshift(new Panel({ name: "medium", title: "Lung that was drawn", note: "dark: air", look, scale: scales.speed, axes: medium, values: this.all.sound_speed.data,
        over: (context, panel) => { darken(context, panel, air); scaleBar(context, panel); }, describe: "The lung that was drawn. Arrow keys move the cursor." }));
    }
    const traces = this.array("rf");
    const axes = { x0: 1, dx: rf.element_step, nx: traces.shape[1], z0: rf.t0_us, dz: rf.dt_us, nz: traces.shape[0] };
    const wave = new Panel({ name: "rf", title: "Echoes (RF)", note: `transmit ${rf.event + 1} of ${rf.events}, ${signed(rf.angle_deg)}°; root scale`, look, scale: scales.rf, axes,
      values: traces.data.map((v) => Math.sign(v) * Math.sqrt(Math.abs(v))), aspect: 1.18, bar: false, smooth: false,
      vertical: "time, µs", horizontal: "element", describe: "Echoes of every element over time." });
    wave.traces = traces;
    const place = medium ? 1 : this.panels.length;
    this.panels.splice(place, 0, wave);
    for (const panel of this.panels) panel.moved = (x, z, told) => this.moveTo(panel, x, z, told);
    this.readout = element("output", { id: "readout", class: "readout" }, element("span", { class: "quiet" }, "Point at a picture, or focus one and use the arrow keys."));
    return element("section", { class: "pictures", "aria-label": "Pictures" }, element("div", { class: "grid" }, ...this.panels.map((panel) => panel.root)),
      this.readout, map ? element("div", { class: "legend" }, key("line", "information depth"), key("mask", "mostly prior: information below 25 %"),
        this.array("valid") && this.array("valid").data.some((v) => !v) ? key("void", "not quantifiable") : null) : null);
  }

  onBmode(context, panel) {
    const { look } = panel;
    const map = this.one.map;
    const pleura = this.array("pleura_depth")?.data;
    if (map && pleura) {
      const valid = this.array("valid")?.data;
      const at = (n) => map.x0 + n * map.dx;
      const points = Array.from(pleura, (depth, n) => [at(n), MM * depth, !valid || valid[n]]);
      polyline(context, panel, points.filter((p) => p[2]), look.pleura, 1.8);
      const deep = map.z0 + (map.nz - 0.5) * map.dz;
      const foot = points.map(([x, z]) => [x, z + deep]);
      polyline(context, panel, [points[0], ...foot, points[points.length - 1]], `${look.pleura}cc`, 1.1, [1.5, 3]);
    }
    scaleBar(context, panel);
  }

  // Hatched where the echoes tell little, pixel by pixel.
  hatchPoor(context, panel) {
    const { x0, dx, nx, z0, dz, nz } = panel.axes;
    const region = new Path2D();
    for (let row = 0; row < nz; row++) {
      for (let column = 0; column < nx; column++) {
        if (panel.values[row * nx + column] >= this.facts.informed) continue;
        const [x, y] = [panel.toX(x0 + (column - 0.5) * dx), panel.toY(z0 + (row - 0.5) * dz)];
        region.rect(x, y, panel.toX(x0 + (column + 0.5) * dx) - x + 0.4, panel.toY(z0 + (row + 0.5) * dz) - y + 0.4);
      }
    }
    context.save();
    context.clip(region);
    context.strokeStyle = "#16202b80";
    context.lineWidth = 0.8;
    const { x, y, width, height } = panel.box;
    for (let d = -height; d < width; d += 9) line(context, x + d, y + height, x + d + height, y);
    context.restore();
  }

  // The shared cursor: a place in the chest, seen in every picture that shows it.
  moveTo(panel, x, z, told) {
    const map = this.one.map;
    const pleura = this.array("pleura_depth")?.data;
    if (panel.name === "rf") {
      panel.cursor([x, z]);
      const { row, column } = panel.valueAt(x, z) ?? {};
      if (row != null) this.say([place("element", Math.round(x), 0, "th element"), place("time", z, 2, "µs")], [["rf", "RF", panel.traces.data[row * panel.axes.nx + column], (v) => `${signed(100 * v, 1)} % of the largest`]], told);
      return;
    }
    const column = map ? Math.round((x - map.x0) / map.dx) : -1;
    const surface = map && column >= 0 && column < map.nx && pleura ? MM * pleura[column] : NaN;
    const onMap = panel.axes === map;
    const below = onMap ? z : z - surface;
    const deep = onMap ? z + surface : z;
    this.at = { x, below, deep };
    for (const other of this.panels) {
      if (other.name === "rf") other.cursor(null);
      else if (other.axes === map) other.cursor(Number.isFinite(below) ? [x, below] : null);
      else other.cursor(Number.isFinite(deep) ? [x, deep] : null);
    }
    this.profile?.cursor(x);
    const where = [place("x", x, 2, "mm")];
    if (Number.isFinite(below)) where.push(place("below", below, 2, "mm below the pleura"));
    if (Number.isFinite(deep)) where.push(place("deep", deep, 2, "mm deep"));
    const read = [];
    const value = (name, title, format = (v) => `${percent(v, 1)} %`, held = this.array(name)?.data) => {
      if (!map || !held) return;
      const row = Math.round((below - map.z0) / map.dz);
      if (column < 0 || column >= map.nx || !(row >= 0 && row < map.nz)) return;
      read.push([name, title, held[row * map.nx + column], format]);
    };
    value("mean", this.array("samples") ? "mean" : "aeration");
    value("lower", "from");
    value("upper", "to");
    value("information", "information");
    value("truth", "truth");
    value("error", "error", (v) => `${signed(100 * v, 1)} points`);
    if (this.array("samples")) {
      const size = map.nx * map.nz;
      value("sample", `sample ${this.current + 1}`, undefined, this.array("samples").data.subarray(this.current * size, (this.current + 1) * size));
    }
    const echo = this.panels.find((p) => p.name === "bmode").valueAt(x, deep);
    if (echo) read.push(["bmode", "echo", echo.value, (v) => `${signed(v, 1)} dB`]);
    this.say(where, read, told);
  }

  say(where, read, told) {
    const chips = read.filter((item) => Number.isFinite(item[2])).map(([name, title, value, format]) =>
      element("span", { class: "chip", "data-name": name, "data-value": value }, `${title} `, element("b", {}, format(value))));
    this.readout.classList.add("live");
    this.readout.replaceChildren(element("span", { class: "where" }, ...where), ...chips);
    if (told) {
      clearTimeout(this.telling);
      this.telling = setTimeout(() => { this.live.textContent = this.readout.innerText.replace(/\s+/g, " "); }, 350);
    }
  }

  // The carousel: lungs that fit the same echoes, one after the other.
  samples(table) {
    const held = this.array("samples");
    if (!held || table.withheld) return null;
    const [count, rows, columns] = held.shape;
    const size = rows * columns;
    this.sampleOf = (n) => held.data.subarray(n * size, (n + 1) * size);
    const { scales } = this.facts;
    const valid = this.array("valid")?.data;
    this.carousel = new Panel({ name: "sample", title: "Sample 1", look: this.facts, scale: scales.aeration, axes: this.one.map, values: this.sampleOf(0),
      vertical: "below pleura, mm", describe: "One lung that fits the echoes. Arrow keys move the cursor.",
      over: (context, panel) => { if (valid) voidColumns(context, panel, valid, this.facts); scaleBar(context, panel); } });
    this.carousel.moved = (x, z, told) => this.moveTo(this.carousel, x, z, told);
    this.panels.push(this.carousel);
    this.strip = element("div", { class: "strip", role: "group", "aria-label": "All samples" }, ...Array.from({ length: count }, (_, n) => {
      const thumb = paint(this.sampleOf(n), rows, columns, scales.aeration, this.facts.void);
      thumb.setAttribute("aria-hidden", "true");
      return element("button", { type: "button", class: "thumb", "aria-label": `Sample ${n + 1}`, onclick: () => this.choose(n) }, thumb);
    }));
    this.swarm = new Swarm({ values: this.array("sample_aeration").data, band: table.whole, chosen: (n) => this.choose(n) });
    this.play = element("button", { type: "button", class: "main round", id: "play", "aria-label": "Play the samples", onclick: () => this.toggle() }, "▶");
    this.slider = element("input", { type: "range", min: "1", max: count, value: "1", id: "sample", "aria-label": "Sample", oninput: (event) => this.choose(+event.target.value - 1) });
    const step = (by, name, sign) => element("button", { type: "button", class: "round soft", "aria-label": name, onclick: () => this.choose((this.current + by + count) % count) }, sign);
    this.which = element("p", { class: "which", id: "which" });
    return element("section", { class: "samples", "aria-labelledby": "samples-title" },
      element("h2", { id: "samples-title" }, "Lungs that fit these echoes"),
      element("p", { class: "quiet" }, "Where they agree, the echoes decide; where they differ, they do not."),
      element("div", { class: "carousel" },
        element("div", {}, this.carousel.root),
        element("div", { class: "deck" },
          element("div", { class: "controls" }, step(-1, "Previous sample", "‹"), this.play, step(1, "Next sample", "›"), this.slider),
          this.which, this.swarm.plot,
          element("p", { class: "quiet small" }, "Each dot is the percent aeration of one sample; shaded: the interval", table.whole?.truth != null ? "; dashed: the truth." : "."),
          this.strip)));
  }

  choose(number) {
    if (!this.strip) return;
    this.current = number;
    const values = this.sampleOf(number);
    this.carousel.show(values);
    this.carousel.caption.firstChild.textContent = `Sample ${number + 1}`;
    this.slider.value = number + 1;
    this.swarm.show(number);
    [...this.strip.children].forEach((thumb, n) => {
      thumb.classList.toggle("now", n === number);
      if (n === number) thumb.setAttribute("aria-current", "true");
      else thumb.removeAttribute("aria-current");
    });
    const air = this.array("sample_aeration").data[number];
    this.which.replaceChildren("Sample ", element("b", {}, number + 1), ` of ${this.strip.children.length}, `, element("b", {}, `${percent(air)} %`), " air");
    this.profile?.show(columnMeans(values, this.one.map, this.one.table.whole, this.array("valid")?.data));
    if (this.at) this.moveTo(this.carousel, this.at.x, this.at.below, false);
  }

  toggle() {
    if (this.playing) return this.stop();
    if (!this.strip) return;
    this.playing = setInterval(() => this.choose((this.current + 1) % this.strip.children.length), 1000 / FRAMES_A_SECOND);
    this.play.textContent = "❚❚";
    this.play.setAttribute("aria-label", "Pause the samples");
  }

  stop() {
    clearInterval(this.playing);
    this.playing = null;
    if (this.play) {
      this.play.textContent = "▶";
      this.play.setAttribute("aria-label", "Play the samples");
    }
  }

  below(table) {
    const map = this.one.map;
    if (!map || !this.array("profile")) return null;
    this.profile = new Profile({ axes: map, level: table.level, profile: this.array("profile").data, lower: this.array("profile_lower")?.data,
      upper: this.array("profile_upper")?.data, truth: this.array("truth_profile")?.data, valid: this.array("valid")?.data,
      moved: (x) => this.moveTo(this.panels.find((p) => p.name === "mean"), x, this.at?.below ?? map.z0, false) });
    const legend = element("div", { class: "legend" }, key("dot", "estimate"), key("range", "interval"), this.array("truth_profile") ? key("dashed", "truth") : null, this.strip ? key("thin", "the sample above") : null);
    const parts = [element("div", { class: "wide" }, this.profile.root, legend)];
    if (table.posterior) parts.push(shares(table), kinds(table));
    const section = element("section", { class: "more" }, ...parts.filter(Boolean));
    if (this.strip) queueMicrotask(() => this.choose(0));
    return section;
  }

  redraw() {
    this.panels?.forEach((panel) => panel.draw());
  }
}

function columnMeans(values, { nx, nz, z0, dz }, whole, valid) {
  const rows = Array.from({ length: nz }, (_, n) => n).filter((n) => !whole || (z0 + n * dz >= whole.top_mm && z0 + n * dz < whole.bottom_mm));
  return Array.from({ length: nx }, (_, x) => (valid && !valid[x] ? NaN : rows.reduce((sum, row) => sum + values[row * nx + x], 0) / rows.length));
}

function darken(context, panel, air) {
  const { nx, nz } = panel.axes;
  const canvas = element("canvas", { width: nx, height: nz });
  const inner = canvas.getContext("2d");
  const image = inner.createImageData(nx, nz);
  air.forEach((there, n) => there && image.data.set([16, 21, 27, 255], 4 * n));
  inner.putImageData(image, 0, 0);
  context.imageSmoothingEnabled = false;
  context.drawImage(canvas, panel.box.x, panel.box.y, panel.box.width, panel.box.height);
}

const place = (name, value, digits, unit) => element("span", { "data-name": name, "data-value": value }, element("b", {}, signed(value, digits)), ` ${unit}`);
const key = (name, text) => element("span", {}, element("i", { class: `key ${name}` }), text);

function facts(table) {
  const rows = [
    ["echoes inform down to", table.information_depth_mm == null ? null : `${table.information_depth_mm.toFixed(1)} mm`],
    ["pleura found at", table.pleura_depth_mm == null ? null : `${table.pleura_depth_mm.toFixed(1)} mm`],
    ["pleural line on poorly aerated lung", table.poor_surface == null ? null : `${percent(table.poor_surface)} %`],
    ["columns that can be quantified", table.valid_columns == null ? null : `${percent(table.valid_columns)} %`],
    ["map error, top millimetre", table.map_error_top_1mm == null ? null : `${percent(table.map_error_top_1mm, 1)} points`],
  ].filter((row) => row[1] != null);
  return element("dl", {}, ...rows.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
}

function shares(table) {
  const limits = ["< 10", "10–50", "50–90", "> 90"];
  const rows = table.posterior.classes.map((share, n) => element("tr", {}, element("th", { scope: "row" }, share.name, element("span", { class: "sub" }, `${limits[n]} % air`)),
    element("td", { class: "chart" }, track(share)), element("td", {}, element("b", {}, share.estimate == null ? "–" : percent(share.estimate)), element("span", { class: "sub" }, share.lower == null ? "" : `${percent(share.lower)}–${percent(share.upper)}`))));
  return element("div", {}, element("h3", {}, "Share of the map"), element("table", { class: "small" }, element("tbody", {}, ...rows)),
    element("p", { class: "quiet small" }, "Limits as in quantitative CT, but pixels of one thin slice are not CT voxels."));
}

function kinds(table) {
  if (!table.posterior.categories.length) return null;
  const rows = table.posterior.categories.map((kind) => {
    const bar = element("i", { class: "fill" });
    bar.style.width = `${100 * kind.probability}%`;
    return element("tr", {}, element("th", { scope: "row" }, kind.name, kind.true ? element("span", { class: "sub no" }, "truth") : null),
      element("td", { class: "chart" }, element("span", { class: "track" }, bar)), element("td", {}, element("b", {}, percent(kind.probability))));
  });
  return element("div", {}, element("h3", {}, "Kind of lung"), element("table", { class: "small" }, element("tbody", {}, ...rows)),
    element("p", { class: "quiet small" }, "Mean over the samples; among the kinds of lung in training only."));
}
