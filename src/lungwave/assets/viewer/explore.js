// Lungs of the prior: a sheet of them, two to choose, and the walk from one to the other.

import { percent } from "./charts.js";
import { element, paint, Panel, scaleBar } from "./panels.js";

const FRAMES_A_SECOND = 8;

export class PriorView {
  constructor(root, morph) {
    this.root = root;
    this.morph = morph;
    this.chosen = [];
  }

  // A sheet of drawn lungs.
  show(job, { facts, arrays }) {
    this.stop();
    this.job = job;
    this.facts = facts;
    this.chosen = [];
    const { data, shape: [count, rows, columns] } = arrays.maps;
    const mean = facts.aeration.reduce((a, b) => a + b, 0) / count;
    this.cards = Array.from({ length: count }, (_, n) => {
      const picture = paint(data.subarray(n * rows * columns, (n + 1) * rows * columns), rows, columns, facts.scales.aeration, facts.void);
      picture.setAttribute("aria-hidden", "true");
      return element("button", { type: "button", class: "lung", "aria-pressed": "false", onclick: () => this.choose(n) }, picture,
        element("span", {}, element("b", {}, `${facts.first + n}`), element("span", {}, `${percent(facts.aeration[n])} %`)));
    });
    this.go = element("button", { type: "button", class: "main", id: "morph", disabled: true, onclick: () => this.walk() }, "Choose two lungs");
    this.player = element("div", { class: "player", id: "player" });
    this.root.replaceChildren(
      element("header", { class: "title" }, element("div", {}, element("h1", {}, `${count} lungs of the prior`),
        element("p", { class: "quiet" }, `${facts.model} · seed ${facts.seed} · ${percent(mean)} % air on average · no echo was heard`)),
      element("div", { class: "actions" }, this.go)),
      this.player,
      element("div", { class: "sheet", role: "group", "aria-label": "Drawn lungs" }, ...this.cards),
      element("p", { class: "quiet small" }, "6.4 mm wide, from the pleura 6.4 mm down; the colours are those of every aeration map, 0–100 % air."));
    if (count >= 2) {
      this.choose(0);
      this.choose(count - 1);
    }
  }

  choose(number) {
    this.chosen = this.chosen.includes(number) ? this.chosen.filter((n) => n !== number) : [...this.chosen.slice(-1), number];
    this.cards.forEach((card, n) => {
      const place = this.chosen.indexOf(n);
      card.setAttribute("aria-pressed", String(place >= 0));
      card.dataset.end = place < 0 ? "" : "AB"[place];
    });
    const [a, b] = this.chosen.map((n) => this.facts.first + n);
    this.go.disabled = this.chosen.length < 2;
    this.go.textContent = this.chosen.length < 2 ? "Choose two lungs" : `Walk from ${a} to ${b}`;
  }

  walk() {
    const [start, end] = this.chosen.map((n) => this.facts.first + n);
    this.go.disabled = true;
    this.morph({ start, end, frames: 25, seed: this.facts.seed, ...pick(this.job.settings, "sampler", "steps") })
      .finally(() => { this.go.disabled = false; });
  }

  // The frames of a walk, in the player above the sheet.
  showMorph({ facts, arrays }) {
    this.stop();
    const { data, shape: [count, rows, columns] } = arrays.maps;
    const size = rows * columns;
    const at = (n) => data.subarray(n * size, (n + 1) * size);
    this.count = count;
    this.panel = new Panel({ name: "morph", title: `Lung ${facts.start} to lung ${facts.end}`, note: "every step is a lung of the prior", look: facts,
      scale: facts.scales.aeration, axes: facts.map, values: at(0), vertical: "below pleura, mm", over: scaleBar, describe: "A lung on the way" });
    this.panel.moved = (x, z) => {
      this.panel.cursor([x, z]);
      const found = this.panel.valueAt(x, z);
      if (found) this.said.textContent = `${x.toFixed(2)} mm, ${z.toFixed(2)} mm below the pleura: ${percent(found.value, 1)} % air`;
    };
    this.said = element("p", { class: "quiet", id: "morph-readout" }, "Point at the picture.");
    this.number = element("p", { class: "big", id: "morph-air" });
    this.play = element("button", { type: "button", class: "main round", "aria-label": "Play the walk", onclick: () => this.toggle() }, "▶");
    this.slider = element("input", { type: "range", min: "0", max: count - 1, value: "0", id: "morph-step", "aria-label": "Step of the walk", oninput: (event) => this.step(+event.target.value) });
    const bars = element("div", { class: "trace", "aria-hidden": "true" }, ...facts.aeration.map((air) => {
      const bar = element("i");
      bar.style.height = `${100 * air}%`;
      return bar;
    }));
    this.trace = [...bars.children];
    this.step = (n) => {
      this.at = n;
      this.panel.show(at(n));
      this.slider.value = n;
      this.number.replaceChildren(percent(facts.aeration[n]), element("small", {}, "%"));
      this.trace.forEach((bar, k) => bar.classList.toggle("now", k === n));
    };
    this.player.replaceChildren(this.panel.root, element("div", { class: "deck" },
      element("h2", {}, "Air of the whole map"), this.number, bars,
      element("div", { class: "controls" }, this.play, element("span", {}, `${facts.start}`), this.slider, element("span", {}, `${facts.end}`)), this.said));
    this.step(0);
    this.toggle();
  }

  toggle() {
    if (this.playing) return this.stop();
    if (!this.panel) return;
    let by = this.at >= this.count - 1 ? -1 : 1;
    this.playing = setInterval(() => {
      if (this.at + by < 0 || this.at + by >= this.count) by = -by;
      this.step(this.at + by);
    }, 1000 / FRAMES_A_SECOND);
    this.play.textContent = "❚❚";
    this.play.setAttribute("aria-label", "Pause the walk");
  }

  stop() {
    clearInterval(this.playing);
    this.playing = null;
    if (this.play) {
      this.play.textContent = "▶";
      this.play.setAttribute("aria-label", "Play the walk");
    }
  }

  redraw() {
    this.panel?.draw();
  }
}

const pick = (held, ...names) => Object.fromEntries(names.map((name) => [name, held[name]]));
