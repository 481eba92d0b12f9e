// The page: a text, its continuation, and the probabilities of the next character.
"use strict";

const BOUNDARY = 0, SHOWN = 12, MAX_CHARACTERS = 100000;
const VISIBLE = { "\n": "↵", " ": "␣", "\t": "⇥" };
const find = (id) => document.getElementById(id);

async function openModel() {
  const described = JSON.parse(find("model").textContent);
  const bytes = await unpack(find("data").textContent);
  const tokenizer = new Tokenizer(described.tokenizer), model = readModel(described.model, bytes, BOUNDARY);
  // The ids of a text; there is at least one.
  const encode = (text) => {
    const ids = tokenizer.encode(text);
    return described.boundary_first || ids.length === 0 ? [BOUNDARY, ...ids] : ids;
  };
  return { tokenizer, model, encode };
}

// The logits after a text; continues from the last text if it is a beginning of this one.
class Reader {
  constructor({ model, encode }) {
    Object.assign(this, { model, encode, ids: null, logits: null });
  }

  read(text) {
    const ids = this.encode(text);
    const continues = this.ids !== null && ids.length >= this.ids.length && this.ids.every((id, i) => id === ids[i]);
    if (!continues) this.logits = this.model.start(ids);
    else for (const id of ids.slice(this.ids.length)) this.logits = this.model.step(id);
    this.ids = ids;
    return this.logits;
  }

  add(id) {
    this.ids.push(id);
    return (this.logits = this.model.step(id));
  }
}

const opened = openModel();

// The text that the model writes after another: the most likely character at a temperature of 0. Used by tests, too.
async function continuation(text, count, temperature = 0) {
  const { tokenizer, model, encode } = await opened;
  let logits = model.start(encode(text)), out = "";
  for (let i = 0; i < count; i++) {
    const id = temperature > 0 ? draw(probabilities(logits, temperature)) : greatest(logits);
    out += tokenizer.decode(id);
    logits = model.step(id);
  }
  return out;
}

async function main() {
  const page = await opened, reader = new Reader(page), text = find("text"), write = find("write");
  let writing = false;

  function showNext(logits) {
    const p = probabilities(logits), order = p.map((_, id) => id).sort((a, b) => p[b] - p[a]).slice(0, SHOWN);
    find("next").replaceChildren(...order.map((id) => {
      const item = document.createElement("li"), button = document.createElement("button");
      const name = page.tokenizer.name(id), letter = document.createElement("code"), bar = document.createElement("i");
      const share = document.createElement("span");
      letter.textContent = VISIBLE[name] ?? name;
      bar.style.width = `${100 * p[id]}%`;
      share.textContent = `${(100 * p[id]).toFixed(1)} %`;
      const cell = document.createElement("div");
      cell.append(bar);
      button.type = "button";
      button.append(letter, cell, share);
      button.addEventListener("click", () => append(name));
      item.append(button);
      return item;
    }));
  }

  function refresh() {
    showNext(reader.read(text.value));
  }

  function append(letters) {
    text.value += letters;
    refresh();
  }

  function choose(logits) {
    const temperature = Number(find("temperature").value);
    return temperature > 0 ? draw(probabilities(logits, temperature, Number(find("top").value))) : greatest(logits);
  }

  async function writeOn() {
    writing = !writing;
    write.textContent = writing ? "Stop" : "Write on";
    if (!writing) return;
    let logits = reader.read(text.value), count = 0;
    const started = performance.now();
    while (writing && text.value.length < MAX_CHARACTERS) {
      let added = "";
      for (const until = performance.now() + 30; performance.now() < until; count++) {
        const id = choose(logits);
        added += page.tokenizer.decode(id);
        logits = reader.add(id);
      }
      text.value += added;
      text.scrollTop = text.scrollHeight;
      find("status").textContent = `${Math.round((1000 * count) / (performance.now() - started))} characters a second`;
      showNext(logits);
      await new Promise((resolve) => setTimeout(resolve));
    }
    writing = false;
    write.textContent = "Write on";
  }

  text.addEventListener("input", () => { writing = false; refresh(); });
  write.addEventListener("click", writeOn);
  find("clear").addEventListener("click", () => { writing = false; text.value = ""; refresh(); });
  text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) writeOn();
    else if (event.key === "Tab" && !event.shiftKey && text.value) append(page.tokenizer.name(greatest(reader.read(text.value))));
    else return;
    event.preventDefault();
  });
  refresh();
}

main().catch((error) => { find("status").textContent = `This browser can't run the model: ${error.message}`; });
