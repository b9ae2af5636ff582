// The page: tabs, forms, the queue, keys; what a job made goes to the views.

import * as api from "./api.js";
import { PriorView } from "./explore.js";
import { element } from "./panels.js";
import { ResultView } from "./result.js";

const SOON = 250; // [ms] between looks at the queue while a job runs
const LATER = 2000;
const BUNDLED = [
  ["healthy", "Healthy", "nearly all alveoli open"],
  ["interstitial", "Interstitial", "thick septa, fluid wedges"],
  ["consolidation", "Consolidation", "an airless region at the pleura"],
];
const TABS = ["reconstruct", "phantom", "prior"];
const DEMO_SEED = 2026;

const at = (id) => document.getElementById(id);
const result = new ResultView(at("result"), at("live"));
const prior = new PriorView(at("lungs"), (settings) => send("morph", settings, "prior"));
const state = { tab: "reconstruct", known: {}, jobs: [], ready: false, chosen: {}, shown: {}, homes: {}, turns: {}, loading: null };

// ------------------------------------------------------------------------------------------------------------ asking

async function send(kind, settings, tab, error = null) {
  return submit(() => api.order(kind, settings), tab, error);
}

async function submit(how, tab, error) {
  say(error, "");
  const turn = (state.turns[tab] = (state.turns[tab] ?? 0) + 1);
  try {
    const id = await how();
    state.homes[id] = tab;
    keep("lungwave-homes", JSON.stringify(state.homes), sessionStorage);
    if (turn === state.turns[tab]) state.chosen[tab] = id; // the newest wish wins, whichever answer comes first
    await look();
    if (matchMedia("(max-width: 900px)").matches) at("stage").scrollIntoView(); // the forms fill a phone
  } catch (refusal) {
    if (error) say(error, refusal.message);
    else banner(refusal.message);
  }
}

function sendFile(file) {
  if (!file) return;
  at("file").value = "";
  const error = at("file-error");
  const suffix = file.name.includes(".") ? file.name.slice(file.name.lastIndexOf(".")).toLowerCase() : "";
  if (!state.known.suffixes.includes(suffix)) return say(error, `${file.name}: give a file that ends in ${state.known.suffixes.join(", ")}.`);
  if (file.size > state.known.upload) return say(error, `${file.name} has ${Math.round(file.size / 1e6)} MB, more than ${Math.round(state.known.upload / 1e6)} MB; start 'lungwave view --max-upload MB' with more.`);
  select("reconstruct");
  submit(() => api.upload(file, how()), "reconstruct", error);
}

// The settings of every reconstruction.
function how() {
  const form = at("how").elements;
  return { model: form.model.value, samples: +form.samples.value, steps: +form.steps.value, sampler: form.sampler.value, seed: +form.seed.value };
}

function say(place, text) {
  if (!place) return;
  place.textContent = text;
  place.hidden = !text;
}

function banner(text) {
  say(at("banner"), text);
}

// --------------------------------------------------------------------------------------------------------- the queue

let timer = null;
async function look() {
  clearTimeout(timer);
  let wait = LATER;
  try {
    const { ready, jobs } = await api.list();
    Object.assign(state, { ready, jobs });
    banner("");
    draw();
    if (jobs.some((job) => job.state !== "done" && !over(job)) || !ready) wait = SOON;
  } catch (refusal) {
    banner(refusal.message);
  }
  timer = setTimeout(look, document.hidden ? 2 * LATER : wait);
}

const over = (job) => ["done", "failed", "cancelled"].includes(job.state);
const homeOf = (job) => state.homes[job.id] ?? { file: "reconstruct", phantom: "phantom" }[job.kind] ?? "prior";

function draw() {
  drawQueue();
  for (const job of state.jobs) {
    const tab = homeOf(job);
    if (!state.chosen[tab]) state.chosen[tab] = job.id;
  }
  for (const tab of TABS) if (!state.jobs.some((job) => job.id === state.chosen[tab])) delete state.chosen[tab];
  drawStage();
}

const rows = new Map();
function drawQueue() {
  at("idle").hidden = state.jobs.length > 0;
  const list = at("queue");
  const here = new Set(state.jobs.map((job) => job.id));
  for (const [id, row] of rows) if (!here.has(id)) { row.root.remove(); rows.delete(id); }
  for (const job of [...state.jobs].reverse()) {
    if (!rows.has(job.id)) rows.set(job.id, makeRow(job));
    const row = rows.get(job.id);
    row.open.disabled = ["failed", "cancelled"].includes(job.state);
    row.root.dataset.state = job.state;
    row.root.classList.toggle("now", state.chosen[state.tab] === job.id);
    row.said.textContent = said(job);
    row.bar.style.width = `${100 * job.share}%`;
    row.drop.setAttribute("aria-label", over(job) ? `Erase ${job.title}` : `Cancel ${job.title}`);
    row.drop.title = over(job) ? "Erase" : "Cancel";
  }
  const wanted = [...state.jobs].reverse().map((job) => rows.get(job.id).root);
  if (wanted.some((root, n) => list.children[n] !== root)) list.replaceChildren(...wanted);
}

function makeRow(job) {
  const bar = element("i");
  const words = element("span", { class: "said" });
  const open = element("button", { type: "button", class: "open", onclick: () => openJob(job) }, element("b", {}, job.title), words, element("span", { class: "progress", "aria-hidden": "true" }, bar));
  const drop = element("button", { type: "button", class: "icon drop-job", onclick: () => dropJob(job.id) }, "×");
  return { root: element("li", { "data-job": job.id }, open, drop), open, said: words, bar, drop };
}

function said(job) {
  if (job.state === "waiting") return state.ready ? (job.ahead ? `waiting, ${job.ahead} ahead` : "waiting") : "waiting for the model to load";
  if (job.state === "failed") return job.message;
  if (job.state === "cancelled") return "cancelled";
  if (job.state === "done") return `done in ${job.seconds.toFixed(1)} s`;
  return `${job.phase || "starting"}${left(job)}`;
}

const left = (job) => (job.left == null ? "" : job.left < 1 ? ", less than a second left" : `, about ${Math.ceil(job.left)} s left`);

async function openJob(job) {
  const tab = homeOf(job);
  state.chosen[tab] = job.id;
  select(tab);
}

async function dropJob(id) {
  try {
    await api.drop(id);
  } catch (refusal) {
    if (refusal.status !== 404) banner(refusal.message);
  }
  look();
}

// --------------------------------------------------------------------------------------------------------- the stage

async function drawStage() {
  const { tab } = state;
  const job = state.jobs.find((one) => one.id === state.chosen[tab]);
  const view = tab === "prior" ? at("lungs") : at("result");
  for (const other of ["result", "lungs"]) if (at(other) !== view) at(other).hidden = true;
  const walking = tab === "prior" && job?.kind === "morph" && prior.facts;
  if (job?.result && state.shown[tab] !== job.id && state.loading !== job.id) {
    state.loading = job.id;
    try {
      const held = await api.result(job.id);
      state.shown[tab] = job.id;
      if (tab === "prior") {
        if (job.kind === "morph") prior.showMorph(held);
        else prior.show(job, held);
      } else {
        state.shown[tab === "phantom" ? "reconstruct" : "phantom"] = null; // both share one view
        view.hidden = false;
        result.show(job, held);
      }
    } catch (refusal) {
      if (refusal.status !== 404) banner(refusal.message);
    }
    state.loading = null;
    if (state.tab !== tab) return;
  }
  const here = job != null && state.shown[tab] === job.id;
  view.hidden = !(here || walking);
  at("welcome").hidden = here || job != null;
  if (!job) drawWelcome();
  at("waiting").hidden = here || !job;
  if (job && !here) drawWaiting(job);
  if (here && tab !== "prior") result.update(job);
}

let waitingFor = "";
function drawWaiting(job) {
  const place = at("waiting");
  const mark = `${job.id} ${job.state}`;
  if (waitingFor !== mark || !place.firstChild) {
    waitingFor = mark;
    const bad = ["failed", "cancelled"].includes(job.state);
    place.replaceChildren(
      element("h1", {}, bad ? (job.state === "failed" ? "This did not work" : "Cancelled") : job.title),
      bad ? element("p", { class: job.state === "failed" ? "error" : "quiet", id: "job-message" }, job.state === "failed" ? job.message : "Nothing of it was kept.") : "",
      bad ? "" : element("p", { class: "phase", id: "phase" }),
      bad ? "" : element("div", { class: "meter", role: "progressbar", "aria-label": job.title, "aria-valuemin": "0", "aria-valuemax": "100" }, element("i")),
      bad ? "" : element("button", { type: "button", class: "soft", id: "cancel", onclick: () => dropJob(job.id) }, "Cancel"));
  }
  const meter = place.querySelector(".meter");
  if (meter) {
    meter.firstChild.style.width = `${100 * job.share}%`;
    meter.setAttribute("aria-valuenow", Math.round(100 * job.share));
    const words = said(job);
    if (at("phase").textContent !== words) at("phase").textContent = words;
  }
}

function drawWelcome() {
  const words = {
    reconstruct: ["From echoes to air", "Drop a recording of raw echoes, or let a lung be made here. You get its B-mode, a map of how much air the lung holds just below the pleura, and how sure that is."],
    phantom: ["A lung whose truth is known", "Choose a category and how severe it is. The same chest comes back for the same number, so that only the disease changes."],
    prior: ["Before any echo", "The prior is what the model believes of lungs in general. Draw some, then walk from one to another."],
  }[state.tab];
  const place = at("welcome");
  if (place.dataset.tab === state.tab) return;
  place.dataset.tab = state.tab;
  const drawing = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  drawing.setAttribute("viewBox", "0 0 320 120");
  drawing.setAttribute("aria-hidden", "true");
  for (let n = 0; n < 5; n++) {
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    const y = 24 + 18 * n;
    const tall = 16 / (1 + 0.55 * n);
    let d = `M0 ${y}`;
    for (let x = 0; x <= 320; x += 4) d += `L${x} ${(y + tall * Math.sin(x / 13 + n) * Math.exp(-(((x - 160) / 90) ** 2))).toFixed(1)}`;
    path.setAttribute("d", d);
    path.setAttribute("opacity", `${1 - 0.17 * n}`);
    drawing.append(path);
  }
  place.replaceChildren(drawing, element("h1", {}, words[0]), element("p", {}, words[1]));
}

// ------------------------------------------------------------------------------------------------------ tabs and keys

function select(tab, focus = false) {
  state.tab = tab;
  for (const name of TABS) {
    const button = at(`tab-${name}`);
    button.setAttribute("aria-selected", String(name === tab));
    button.tabIndex = name === tab ? 0 : -1;
    at(`form-${name}`).hidden = name !== tab;
    if (name === tab && focus) button.focus();
  }
  at("options").hidden = tab === "prior";
  result.stop();
  prior.stop();
  draw();
}

function turnLight() {
  const dark = getComputedStyle(document.documentElement).getPropertyValue("--dark").trim() === "1";
  setTheme(dark ? "light" : "dark");
}

// Small things that outlive a reload, in browsers that keep any.
function keep(name, value, where = localStorage) {
  try {
    where.setItem(name, value);
  } catch {
    // kept nowhere
  }
}

function kept(name, where = localStorage) {
  try {
    return where.getItem(name);
  } catch {
    return null;
  }
}

function setTheme(name) {
  if (name) {
    document.documentElement.dataset.theme = name;
    keep("lungwave-theme", name);
  }
  result.redraw();
  prior.redraw();
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || at("guide").open) return;
  const typing = event.target.matches("input:not([type=range]), select, textarea");
  if (typing) return;
  const press = (action) => { event.preventDefault(); action(); };
  const number = ["1", "2", "3"].indexOf(event.key);
  if (number >= 0) return press(() => select(TABS[number], true));
  if (event.key === "?") return press(() => at("guide").showModal());
  if (event.key === "t") return press(turnLight);
  if (event.key === "o") return press(() => { select("reconstruct"); at("file").click(); });
  if (event.key === "d") return press(() => !at("result").hidden && at("download")?.href && at("download").click());
  if (event.key === "x") {
    const running = state.jobs.find((job) => ["running", "shown"].includes(job.state)) ?? state.jobs.find((job) => job.state === "waiting");
    return running && press(() => dropJob(running.id));
  }
  const view = state.tab === "prior" ? prior : result;
  if (event.key === " " && !event.target.matches("button, a, summary, [type=radio], [type=file]")) return press(() => view.toggle());
  if ((event.key === "[" || event.key === "]") && view === result && result.strip) {
    const count = result.strip.children.length;
    return press(() => result.choose((result.current + (event.key === "]" ? 1 : -1) + count) % count));
  }
}

function onTabKey(event) {
  const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!by) return;
  event.preventDefault();
  select(TABS[(TABS.indexOf(state.tab) + by + TABS.length) % TABS.length], true);
}

// -------------------------------------------------------------------------------------------------------------- begin

function fillForms() {
  const { known } = state;
  for (const name of known.models) at("how").elements.model.append(element("option", { value: name }, name));
  for (const form of [at("how"), at("prior")]) {
    for (const [name, title] of Object.entries(known.samplers)) form.elements.sampler.append(element("option", { value: name }, title));
  }
  for (const snr of known.snrs) at("phantom").elements.snr_db.append(element("option", { value: snr, selected: snr === 30 }, `${snr} dB`));
  known.categories.forEach((name, n) => at("categories").append(element("label", {},
    element("input", { type: "radio", name: "category", value: name, checked: name === "interstitial" }),
    element("span", {}, name[0].toUpperCase() + name.slice(1), n >= known.trained ? element("small", {}, "not in training") : null))));
  at("cases").append(...BUNDLED.map(([category, title, what]) => element("button", { type: "button", class: "case", "data-case": category,
    onclick: () => send("phantom", { ...how(), category, severity: 0.5, snr_db: 30, seed: DEMO_SEED }, "reconstruct") }, element("b", {}, title), element("span", {}, what))));
  at("version").textContent = known.version;
}

function budget() {
  const { samples, steps, sampler, model } = how();
  at("budget").textContent = model.startsWith("ridge") ? "A ridge model draws no samples: one map, with split-conformal intervals."
    : `${samples} samples of ${sampler === "heun" ? 2 * steps - 1 : steps} calls. 90 % intervals need 19 samples or more.`;
}

function listen() {
  TABS.forEach((tab) => at(`tab-${tab}`).addEventListener("click", () => select(tab)));
  document.querySelector("[role=tablist]").addEventListener("keydown", onTabKey);
  document.addEventListener("keydown", onKey);
  at("theme").addEventListener("click", turnLight);
  at("help").addEventListener("click", () => at("guide").showModal());
  at("file").addEventListener("change", (event) => sendFile(event.target.files[0]));
  at("how").addEventListener("input", budget);
  at("how").addEventListener("submit", (event) => event.preventDefault());
  const severity = at("phantom").elements.severity;
  const tell = () => { at("severity-value").textContent = `${severity.value} %`; };
  severity.addEventListener("input", tell);
  tell();
  at("phantom").addEventListener("submit", (event) => {
    event.preventDefault();
    const form = event.target.elements;
    send("phantom", { ...how(), category: form.category.value, severity: severity.value / 100, snr_db: +form.snr_db.value, seed: +form.seed.value }, "phantom", event.target.querySelector(".error"));
  });
  at("another").addEventListener("click", () => {
    at("phantom").elements.seed.value = Math.floor(Math.random() * 10000);
    at("phantom").requestSubmit();
  });
  at("prior").addEventListener("submit", (event) => {
    event.preventDefault();
    const form = event.target.elements;
    send("prior", { seed: +form.seed.value, count: +form.count.value, sampler: form.sampler.value, steps: +form.steps.value }, "prior", event.target.querySelector(".error"));
  });
  for (const name of ["dragover", "dragenter"]) document.addEventListener(name, (event) => { event.preventDefault(); document.body.classList.add("dragging"); });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dragging"); });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dragging");
    sendFile(event.dataTransfer.files[0]);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => setTheme(null));
}

async function begin() {
  history.replaceState(null, "", location.pathname); // the token has become a cookie
  setTheme(kept("lungwave-theme"));
  state.homes = JSON.parse(kept("lungwave-homes", sessionStorage) ?? "{}");
  try {
    state.known = await api.about();
  } catch (refusal) {
    return banner(refusal.message);
  }
  fillForms();
  listen();
  budget();
  select("reconstruct");
  await look();
}

begin();
