// The page: a text, its continuation, and the probabilities of the next character.
"use strict";

const SHOWN = 12, MAX_CHARACTERS = 100000, SNAPSHOT_INTERVAL = 64, MAX_SNAPSHOTS = 32;
const VISIBLE = { "\n": ["↵", "new line"], " ": ["␣", "space"], "\t": ["⇥", "tab"] };
const element = (id) => document.getElementById(id);

// Show how much of the training text is counted, and let the browser draw it.
function report(share) {
  element("status").textContent = `Reading the training text: ${Math.floor(100 * share)} %`;
  return new Promise((resolve) => setTimeout(resolve));
}

async function openModel() {
  const described = JSON.parse(element("model").textContent);
  const bytes = await unpack(element("data").textContent);
  const tokenizer = new Tokenizer(described.tokenizer, described.lines), model = await readModel(described.model, bytes, report);
  // The ids of a text; there is at least one.
  const encode = (text) => {
    const ids = tokenizer.encode(text);
    return described.lines || ids.length === 0 ? [...described.start, ...ids] : ids;
  };
  return { tokenizer, model, encode };
}

// Computes the logits after a text. Continues from the latest snapshot of the model within the common beginning of this text
// and the previous one.
class Reader {
  constructor({ tokenizer, model, encode }) {
    Object.assign(this, { tokenizer, model, encode, ids: [], snapshots: [], logits: null });
  }

  read(text) {
    const ids = this.encode(text);
    let same = 0;
    while (same < Math.min(ids.length, this.ids.length) && ids[same] === this.ids[same]) same++;
    this.snapshots = this.snapshots.filter(({ length }) => length <= same);
    const last = this.snapshots.at(-1), { startCost } = this.model;
    this.tokenizer.begin();
    if (last === undefined || ids.length - last.length > startCost) {
      // Start after all tokens if that is quick; otherwise take snapshots on the way.
      this.ids = Number.isFinite(startCost) ? [...ids] : ids.slice(0, 1);
      this.logits = this.model.start(this.ids);
      this.takeSnapshot();
    } else {
      this.model.snapshot = last.snapshot;
      this.ids = ids.slice(0, last.length);
      this.logits = last.logits;
    }
    for (const id of ids.slice(this.ids.length)) this.add(id);
    if (this.snapshots.at(-1).length < this.ids.length) this.takeSnapshot();
    return this.logits;
  }

  add(id) {
    this.ids.push(id);
    this.logits = this.model.step(id);
    if (this.ids.length % SNAPSHOT_INTERVAL === 0) this.takeSnapshot();
    return this.logits;
  }

  takeSnapshot() {
    this.snapshots.push({ length: this.ids.length, snapshot: this.model.snapshot, logits: this.logits.slice() });
    if (this.snapshots.length > MAX_SNAPSHOTS) this.snapshots.shift(); // text before them is computed again
  }
}

const opened = openModel();

// Generate `count` tokens after a text; temperature 0 is greedy. Also called by the tests.
async function continuation(text, count, temperature = 0) {
  const { tokenizer, model, encode } = await opened;
  let logits = model.start(encode(text)), out = "";
  tokenizer.begin();
  for (let i = 0; i < count; i++) {
    const id = temperature > 0 ? sampleToken(probabilities(logits, temperature)) : argmax(logits);
    out += tokenizer.decode(id);
    logits = model.step(id);
  }
  return out;
}

async function main() {
  const page = await opened, reader = new Reader(page), text = element("text"), write = element("write");
  const buttons = Array.from({ length: SHOWN }, makeSuggestion);
  let run = 0, silenced = 0, generating = false, escaped = false, predicted = null;

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
    element("next").append(item);
    return button;
  }

  function showNext(logits) {
    const p = probabilities(logits);
    const order = p.map((_, id) => id).filter((id) => page.tokenizer.begins(id)).sort((a, b) => p[b] - p[a]);
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

  const beforeCaret = () => text.value.slice(0, text.selectionStart);

  // Show a message, and the characters of the text that the model can't read.
  function showStatus(message = "") {
    const unknown = page.tokenizer.unknown(text.value);
    const ignored = unknown ? `Ignored, because the model doesn't know them: ${unknown}` : "";
    element("status").textContent = [message, ignored].filter(Boolean).join(". ");
  }

  // Show what follows at the caret.
  function refresh() {
    predicted = beforeCaret();
    showNext(reader.read(predicted));
    showStatus();
  }

  // Insert at the caret, by a command that the browser can undo if it has one.
  function insert(letters) {
    const focused = document.activeElement;
    text.focus();
    if (!document.execCommand("insertText", false, letters))
      text.setRangeText(letters, text.selectionStart, text.selectionEnd, "end");
    focused.focus();
  }

  // Insert a token; if it is only part of a character, complete the character greedily.
  function append(id) {
    stop();
    reader.read(beforeCaret());
    let letters = page.tokenizer.decode(id);
    while (letters === "") {
      const logits = reader.add(id).map((z, next) => (page.tokenizer.continues(next) ? z : IMPOSSIBLE));
      letters = page.tokenizer.decode((id = argmax(logits)));
    }
    insert(letters);
    refresh();
  }

  function choose(logits) {
    const typed = element("temperature").valueAsNumber, top = element("top").valueAsNumber || 0;
    const temperature = Number.isNaN(typed) ? 1 : typed;
    return temperature > 0 ? sampleToken(probabilities(logits, temperature, top)) : argmax(logits);
  }

  function stop() {
    run++;
    generating = false;
    write.textContent = "Continue";
  }

  async function toggleGeneration() {
    if (generating) return stop();
    if (!["temperature", "top"].every((id) => element(id).reportValidity())) return;
    const thisRun = ++run;
    generating = true;
    write.textContent = "Stop";
    showStatus();
    let logits = reader.read(text.value), letters = 0;
    const started = performance.now();
    while (thisRun === run && text.value.length < MAX_CHARACTERS) {
      let added = "";
      for (const until = performance.now() + 80; performance.now() < until; ) {
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
    if (text.value.length >= MAX_CHARACTERS) showStatus(`No more than ${MAX_CHARACTERS} characters fit; clear some`);
    else if (silenced !== thisRun && (thisRun === run || !generating)) showStatus(`${rate} characters a second`);
    if (thisRun === run) stop();
    if (!generating) showNext(reader.read((predicted = beforeCaret()))); // it may have stopped within a character
  }

  function edited(change = () => {}) {
    silenced = run;
    stop();
    change();
    refresh();
  }

  text.addEventListener("input", () => edited());
  document.addEventListener("selectionchange", () => {
    if (!generating && document.activeElement === text && beforeCaret() !== predicted) refresh();
  });
  write.addEventListener("click", toggleGeneration);
  element("clear").addEventListener("click", () => {
    text.focus();
    text.select();
    if (!document.execCommand("delete")) edited(() => (text.value = ""));
  });
  text.addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    const plain = !event.ctrlKey && !event.metaKey && !event.altKey && !event.shiftKey;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) toggleGeneration();
    else if (event.key === "Tab" && plain && !escaped && text.value) append(argmax(reader.read(beforeCaret())));
    else {
      escaped = event.key === "Escape";
      return;
    }
    event.preventDefault();
  });
  refresh();
}

main().catch((error) => { element("status").textContent = `This browser can't run the model: ${error.message}`; });
