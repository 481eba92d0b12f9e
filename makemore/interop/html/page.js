// The page: a text, its continuation, and the probabilities of the next character.
"use strict";

const SHOWN = 12, MAX_CHARACTERS = 100000, SAVED_EVERY = 64;
const VISIBLE = { "\n": ["↵", "new line"], " ": ["␣", "space"], "\t": ["⇥", "tab"] };
const find = (id) => document.getElementById(id);

async function openModel() {
  const described = JSON.parse(find("model").textContent);
  const bytes = await unpack(find("data").textContent);
  const tokenizer = new Tokenizer(described.tokenizer, described.lines), model = readModel(described.model, bytes, BOUNDARY);
  // The ids of a text; there is at least one.
  const encode = (text) => {
    const ids = tokenizer.encode(text);
    return described.lines || ids.length === 0 ? [...described.start, ...ids] : ids;
  };
  return { tokenizer, model, encode };
}

// The logits after a text. Goes on from the longest beginning that it has read before and kept.
class Reader {
  constructor({ tokenizer, model, encode }) {
    Object.assign(this, { tokenizer, model, encode, ids: [], kept: [], logits: null });
  }

  read(text) {
    const ids = this.encode(text);
    let same = 0;
    while (same < Math.min(ids.length, this.ids.length) && ids[same] === this.ids[same]) same++;
    this.kept = this.kept.filter(({ length }) => length <= same);
    const last = this.kept.at(-1);
    this.tokenizer.begin();
    if (last === undefined) {
      // A model with a limited context doesn't read what comes before it; others keep states on the way.
      this.ids = this.model.longest ? [...ids] : ids.slice(0, 1);
      this.logits = this.model.start(this.ids);
      this.keep();
    } else {
      this.model.saved = last.saved;
      this.ids = ids.slice(0, last.length);
      this.logits = last.logits;
    }
    for (const id of ids.slice(this.ids.length)) this.add(id);
    if (this.kept.at(-1).length < this.ids.length) this.keep();
    return this.logits;
  }

  add(id) {
    this.ids.push(id);
    this.logits = this.model.step(id);
    if (this.ids.length % SAVED_EVERY === 0) this.keep();
    return this.logits;
  }

  keep() {
    this.kept.push({ length: this.ids.length, saved: this.model.saved, logits: this.logits.slice() });
  }
}

const opened = openModel();

// The text that the model writes after another: the most likely character at a temperature of 0. Used by tests, too.
async function continuation(text, count, temperature = 0) {
  const { tokenizer, model, encode } = await opened;
  let logits = model.start(encode(text)), out = "";
  tokenizer.begin();
  for (let i = 0; i < count; i++) {
    const id = temperature > 0 ? draw(probabilities(logits, temperature)) : greatest(logits);
    out += tokenizer.decode(id);
    logits = model.step(id);
  }
  return out;
}

async function main() {
  const page = await opened, reader = new Reader(page), text = find("text"), write = find("write");
  const buttons = Array.from({ length: SHOWN }, makeSuggestion);
  let run = 0, silenced = 0, writing = false, leaving = false;

  function makeSuggestion() {
    const item = document.createElement("li"), button = document.createElement("button"), cell = document.createElement("div");
    button.type = "button";
    cell.append(document.createElement("i"));
    button.append(document.createElement("code"), cell, document.createElement("span"));
    button.addEventListener("click", (event) => {
      append(Number(button.dataset.id));
      if (event.detail > 0) text.focus(); // by pointer, not by keyboard
    });
    item.append(button);
    find("next").append(item);
    return button;
  }

  function showNext(logits) {
    const p = probabilities(logits), order = p.map((_, id) => id).sort((a, b) => p[b] - p[a]);
    buttons.forEach((button, k) => {
      const id = order[k], [letter, cell, share] = button.children;
      button.hidden = id === undefined;
      if (button.hidden) return;
      const name = page.tokenizer.name(id), [shown, spoken] = VISIBLE[name] ?? [name, name];
      button.dataset.id = id;
      letter.textContent = shown;
      cell.firstChild.style.width = `${100 * p[id]}%`;
      share.textContent = `${(100 * p[id]).toFixed(1)} %`;
      button.ariaLabel = `${spoken}, ${share.textContent}`;
    });
  }

  function refresh() {
    showNext(reader.read(text.value));
    const unknown = page.tokenizer.unknown(text.value);
    find("status").textContent = unknown ? `Ignored, because the model doesn't know them: ${unknown}` : "";
  }

  // Append a token and, if it is part of a character, the most likely rest of it.
  function append(id) {
    stop();
    reader.read(text.value);
    let letters = page.tokenizer.decode(id);
    while (letters === "") letters = page.tokenizer.decode((id = greatest(reader.add(id))));
    text.value += letters;
    refresh();
  }

  function choose(logits) {
    const temperature = Number(find("temperature").value || 1), top = Math.ceil(Number(find("top").value));
    return temperature > 0 ? draw(probabilities(logits, temperature, top)) : greatest(logits);
  }

  function stop() {
    run++;
    writing = false;
    write.textContent = "Continue";
  }

  async function writeOn() {
    if (writing) return stop();
    const own = ++run, started = performance.now();
    writing = true;
    write.textContent = "Stop";
    find("status").textContent = "";
    let logits = reader.read(text.value), letters = 0;
    while (own === run && text.value.length < MAX_CHARACTERS) {
      let added = "";
      for (const until = performance.now() + 30; performance.now() < until; ) {
        const id = choose(logits);
        added += page.tokenizer.decode(id);
        logits = reader.add(id);
      }
      text.value += added;
      letters += added.length;
      text.scrollTop = text.scrollHeight;
      showNext(logits);
      await new Promise((resolve) => setTimeout(resolve));
    }
    const rate = Math.round((1000 * letters) / (performance.now() - started));
    if (text.value.length >= MAX_CHARACTERS) find("status").textContent = `No more than ${MAX_CHARACTERS} characters; clear some.`;
    else if (silenced !== own && (own === run || !writing)) find("status").textContent = `${rate} characters a second`;
    if (own === run) stop();
  }

  function edited(change = () => {}) {
    silenced = run;
    stop();
    change();
    refresh();
  }

  text.addEventListener("input", () => edited());
  write.addEventListener("click", writeOn);
  find("clear").addEventListener("click", () => edited(() => (text.value = "")));
  text.addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    const plain = !event.ctrlKey && !event.metaKey && !event.altKey && !event.shiftKey;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) writeOn();
    else if (event.key === "Tab" && plain && !leaving && text.value) append(greatest(reader.read(text.value)));
    else {
      leaving = event.key === "Escape";
      return;
    }
    event.preventDefault();
  });
  refresh();
}

main().catch((error) => { find("status").textContent = `This browser can't run the model: ${error.message}`; });
