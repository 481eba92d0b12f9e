"use strict";

const token = decodeURIComponent(location.hash.slice(1));
const find = (id) => document.getElementById(id);
const text = find("text");
const SLIDERS = ["temperature", "top_k", "top_p", "min_p"];
const OFF = { temperature: null, top_k: "0", top_p: "1", min_p: "0" };
const SHOWN = 30;

async function ask(path, question, signal) {
  const answer = await fetch(path, {
    method: question ? "POST" : "GET",
    headers: { Authorization: `Bearer ${token}`, "Content-Type": "application/json" },
    body: question && JSON.stringify(question),
    signal,
  });
  if (!answer.ok) {
    const told = await answer.json().catch(() => ({}));
    throw new Error(told.error || `server error ${answer.status}`);
  }
  return answer;
}

function made(tag, properties = {}, ...children) {
  const part = Object.assign(document.createElement(tag), properties);
  part.append(...children);
  return part;
}

const picture = (control) => String.fromCharCode(0x2400 + control.charCodeAt(0));
const visible = (piece) =>
  piece.replace(/ /g, "␣").replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/[\0-\x1f]/g, picture);
const percent = (p) => (p >= 0.0995 ? `${(100 * p).toFixed(0)} %` : `${(100 * p).toPrecision(2)} %`);
const shade = (p) => (p >= 0.5 ? "p3" : p >= 0.2 ? "p2" : p >= 0.05 ? "p1" : "p0");

function settings() {
  const found = {};
  for (const name of SLIDERS) {
    const value = find(name).value;
    if (value !== OFF[name]) found[name] = Number(value);
  }
  if (find("adaptive").checked) found.adaptive = true;
  return found;
}

function showSettings() {
  for (const name of SLIDERS) {
    const slider = find(name);
    const off = slider.value === OFF[name];
    slider.nextElementSibling.textContent = off ? "off" : slider.value;
    slider.setAttribute("aria-valuetext", off ? "off" : slider.value);
  }
}

/** Arrow keys move between a group's buttons; only one of them is a tab stop. */
function roam(group, back, forth) {
  group.addEventListener("keydown", (event) => {
    const buttons = [...group.querySelectorAll("button")];
    const at = buttons.indexOf(document.activeElement);
    const to = { [back]: at - 1, [forth]: at + 1, Home: 0, End: buttons.length - 1 }[event.key];
    if (to === undefined || !buttons[to]) return;
    event.preventDefault();
    enter(buttons, to);
    buttons[to].focus();
  });
}

function enter(buttons, at) {
  buttons.forEach((button, i) => { button.tabIndex = i === at ? 0 : -1; });
}

class Pane {
  constructor(runs, chosen, optional) {
    this.root = find("pane").content.firstElementChild.cloneNode(true);
    find("panes").append(this.root);
    this.part = (name) => this.root.querySelector(name);
    this.runs = runs;
    this.at = null;
    const select = this.part("select");
    if (optional) {
      select.append(new Option("none", ""));
      this.root.setAttribute("aria-label", "Second run");
    } else {
      this.root.setAttribute("aria-label", "First run");
    }
    select.append(...runs.map((run) => new Option(run.name, run.name)));
    select.value = chosen;
    select.addEventListener("change", () => {
      if (this.drawing) this.drawing.abort();
      this.at = null;
      this.part(".samples").replaceChildren();
      this.look();
    });
    this.part(".draw").addEventListener("click", () => this.draw());
    this.part(".stop").addEventListener("click", () => this.drawing.abort());
    roam(this.part(".tokens"), "ArrowLeft", "ArrowRight");
    roam(this.part(".next"), "ArrowUp", "ArrowDown");
  }

  get run() {
    return this.runs.find((run) => run.name === this.part("select").value);
  }

  async look() {
    if (this.looking) this.looking.abort();
    const { run } = this;
    this.root.classList.toggle("off", !run);
    this.part(".about").textContent = run
      ? `${run.model}, ${run.parameters.toLocaleString("en")} parameters, ${run.tokenizer} tokens of ${run.text}` : "";
    if (!run) return;
    this.looking = new AbortController();
    const asked = text.value;
    try {
      const question = { run: run.name, text: asked, at: this.at, ...settings() };
      const answer = await ask("api/predict", question, this.looking.signal);
      this.show(await answer.json(), asked);
    } catch (error) {
      if (error.name !== "AbortError") this.part(".note").textContent = error.message;
    }
  }

  show(seen, asked) {
    this.seen = seen;
    const left = [...seen.left_out].map(visible).join(" ");
    this.part(".note").textContent = left ? `skipped, not in the model's vocabulary: ${left}` : "";
    this.showTokens(seen);
    this.showNext(seen);
    this.root.dataset.shows = asked;
  }

  showTokens(seen) {
    const group = this.part(".tokens");
    const focused = group.contains(document.activeElement);
    const buttons = seen.tokens.map((token, i) => {
      const button = made("button", { type: "button", textContent: visible(token.text) });
      if (token.p === null) {
        button.disabled = true;
        return button;
      }
      button.className = shade(token.p);
      button.title = percent(token.p);
      button.setAttribute("aria-label", `${visible(token.text)}, ${percent(token.p)}`);
      button.setAttribute("aria-pressed", String(this.at === i));
      button.addEventListener("click", () => { this.at = this.at === i ? null : i; this.look(); });
      return button;
    });
    const early = seen.earlier ? [made("span", { className: "hint", textContent: "… " })] : [];
    group.replaceChildren(...early, ...buttons);
    const at = this.at === null ? buttons.length - 1 : this.at;
    enter(buttons, at);
    if (focused && buttons[at]) buttons[at].focus();
  }

  showNext(seen) {
    const there = this.at === null ? null : seen.tokens[seen.at].text;
    this.part(".place").textContent = there === null ? "Next token" : `Alternatives to ${visible(there)}`;
    this.part(".entropy").textContent =
      `${seen.entropy.toFixed(2)} bits of entropy. Bars: the model's probability; lines: after these settings.`;
    const most = Math.max(...seen.candidates.map((c) => Math.max(c.p, c.sampling_p)), 1e-9);
    const group = this.part(".next");
    const focused = group.contains(document.activeElement);
    const items = seen.candidates.slice(0, SHOWN).map((candidate) => {
      const name = candidate.ends ? "the end" : visible(candidate.text);
      const button = made("button", { type: "button" },
        made("span", { textContent: name, className: candidate.text === there ? "there" : "" }),
        bar(candidate.p / most, candidate.sampling_p / most),
        made("span", { textContent: percent(candidate.p), className: "figure" }));
      button.setAttribute("aria-label",
        `${name}, ${percent(candidate.p)}; after these settings ${percent(candidate.sampling_p)}`);
      button.addEventListener("click", () => this.take(candidate));
      return made("li", {}, button);
    });
    group.replaceChildren(...items);
    const buttons = [...group.querySelectorAll("button")];
    enter(buttons, 0);
    if (focused && buttons[0]) buttons[0].focus();
  }

  take(candidate) {
    /* A text can't end in part of a character. */
    if (candidate.ends || candidate.text.includes("\uFFFD")) return;
    text.value = this.seen.before + candidate.text;
    changed();
  }

  async draw() {
    const { run } = this;
    if (!run) return;
    if (this.drawing) this.drawing.abort();
    const drawing = new AbortController();
    this.drawing = drawing;
    this.part(".stop").disabled = false;
    const place = this.part(".samples");
    place.replaceChildren();
    const begun = text.value;
    const question = { run: run.name, text: begun, ...settings() };
    if (find("seed").value) question.seed = Number(find("seed").value);
    let drawn = "";
    try {
      const answer = await ask("api/sample", question, drawing.signal);
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      for (let piece = await reader.read(); !piece.done; piece = await reader.read()) {
        drawn += piece.value;
        if (this.drawing === drawing) this.showSamples(run, begun, drawn);
      }
    } catch (error) {
      if (error.name !== "AbortError") this.part(".note").textContent = error.message;
    }
    if (this.drawing !== drawing) return;
    place.dataset.done = begun;
    this.part(".stop").disabled = true;
  }

  showSamples(run, begun, drawn) {
    const samples = run.mode === "lines" ? drawn.split("\n").slice(0, -1) : [begun + drawn];
    this.part(".samples").replaceChildren(...samples.map((sample) => {
      const button = made("button", { type: "button", textContent: sample, title: "Show its probabilities" });
      button.addEventListener("click", () => { text.value = sample; changed(); text.focus(); });
      return button;
    }));
  }
}

const SVG = "http://www.w3.org/2000/svg";

function bar(p, drawn) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 100 10");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const drawings = { rect: { width: 100 * p, height: 10 }, line: { x1: 0, x2: 100 * drawn, y1: 8.5, y2: 8.5 } };
  for (const [tag, numbers] of Object.entries(drawings)) {
    const shape = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(numbers)) shape.setAttribute(name, value);
    svg.append(shape);
  }
  return svg;
}

let panes = [];

function changed() {
  for (const pane of panes) {
    pane.at = null;
    pane.look();
  }
}

async function begin() {
  showSettings();
  const { runs } = await (await ask("api/runs")).json();
  panes = [new Pane(runs, runs[0].name, false), new Pane(runs, runs[1] ? runs[1].name : "", true)];
  find("top_k").max = Math.min(100, Math.max(...runs.map((run) => run.vocab_size)));
  text.addEventListener("input", changed);
  for (const name of SLIDERS) {
    find(name).addEventListener("input", () => { showSettings(); panes.forEach((pane) => pane.look()); });
  }
  find("adaptive").addEventListener("change", () => panes.forEach((pane) => pane.look()));
  find("reset").addEventListener("click", () => {
    for (const name of SLIDERS) find(name).value = find(name).defaultValue;
    find("seed").value = "";
    find("adaptive").checked = false;
    showSettings();
    panes.forEach((pane) => pane.look());
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") text.focus();
    if (event.key === "Enter" && event.ctrlKey) panes.forEach((pane) => pane.draw());
  });
  changed();
}

begin().catch((error) => { find("trouble").textContent = error.message; });
