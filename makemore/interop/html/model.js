// Decoders: each takes the tokens of a prompt with start(ids), then one token at a time with step(id), and returns the
// logits of the next token. startCost: an upper bound on the time of start(ids), in steps,
// for prompts of any length.
"use strict";

const BOUNDARY = 0, IMPOSSIBLE = -80;

async function unpack(text) {
  const packed = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

// A tensor from its description and the block of bytes.
function readTensor({ type, at, shape, fill, factors }, bytes) {
  const n = size(shape), Kind = { i4: Int32Array, u2: Uint16Array, u1: Uint8Array }[type] ?? Float32Array;
  if (fill !== undefined) return tensor(shape, new Kind(n).fill(number(fill)));
  if (type !== "i3") return tensor(shape, new Kind(bytes, at, n));
  // 24 bits, lowest byte first.
  const scale = readTensor(factors, bytes).d, b = new Uint8Array(bytes, at, 3 * n), data = new Float32Array(n);
  for (let i = 0, columns = shape[1]; i < n; i++) {
    const whole = (((b[3 * i] | (b[3 * i + 1] << 8) | (b[3 * i + 2] << 16)) << 8) >> 8);
    data[i] = whole * scale[Math.floor(i / columns)];
  }
  return tensor(shape, data);
}

function readProgram(program, bytes) {
  return compile({ ...program, constants: program.constants.map((one) => readTensor(one, bytes)) });
}

class Network {
  constructor(described, bytes) {
    this.program = readProgram(described.step, bytes);
    this.drop = described.drop && readProgram(described.drop, bytes);
    this.initial = described.state.map((part) => readTensor(part, bytes));
    this.limit = described.limit;
    this.longest = described.max_len;
    this.startCost = this.longest ?? Infinity;
  }

  // The program changes its state in place.
  get snapshot() {
    return { state: this.state.map(copy), used: this.used, recent: this.recent };
  }

  set snapshot(snapshot) {
    Object.assign(this, snapshot, { state: snapshot.state.map(copy) });
  }

  start(ids) {
    this.reset();
    this.recent = this.longest ? ids.slice(-this.longest) : ids;
    return this.recent.reduce((_, id) => this.feed(id), null);
  }

  reset() {
    this.state = this.initial.map(copy);
    this.used = 0;
  }

  feed(id) {
    const [logits, ...state] = this.program(tensor([1, 1], Int32Array.of(id)), ...this.state);
    this.state = state;
    this.used++;
    return logits.d;
  }

  step(id) {
    if (this.limit === null) return this.feed(id);
    this.recent = [...this.recent, id].slice(-this.limit);
    return this.used < this.limit ? this.feed(id) : this.shift(id);
  }

  // The context is full: keep its last half.
  shift(id) {
    const half = Math.floor(this.limit / 2);
    if (this.drop) {
      this.state = this.drop(...this.state.slice(1));
      this.used = half;
      return this.feed(id);
    }
    this.reset();
    return this.recent.slice(-Math.max(1, half)).reduce((_, recent) => this.feed(recent), null);
  }
}

// Smoothed n-grams. `node` is the longest known context; each context links to the next shorter one.
class Count {
  constructor(described, bytes) {
    this.contexts = described.contexts;
    this.ends = described.document_ends;
    this.startCost = 1;
    for (const name of ["tokens", "first", "suffixes", "shares", "rests", "unigram"])
      this[name] = readTensor(described[name], bytes).d;
  }

  get snapshot() {
    return this.node;
  }

  set snapshot(node) {
    this.node = node;
  }

  start(ids) {
    this.node = 0;
    for (const id of ids) this.advance(id);
    return this.logits(ids[ids.length - 1]);
  }

  step(id) {
    this.advance(id);
    return this.logits(id);
  }

  find(node, id) {
    let low = this.first[node], high = this.first[node + 1];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.tokens[middle] < id) low = middle + 1;
      else high = middle;
    }
    return low < this.first[node + 1] && this.tokens[low] === id ? low : -1;
  }

  advance(id) {
    let context = id === BOUNDARY ? 0 : this.node, next;
    while ((next = this.find(context, id)) < 0) context = this.suffixes[context];
    this.node = next >= this.contexts ? this.suffixes[next] : next;
  }

  logits(last) {
    const path = [], p = Float64Array.from(this.unigram);
    for (let node = this.node; node !== 0; node = this.suffixes[node]) path.push(node);
    for (const node of path.reverse()) {
      for (let i = 0; i < p.length; i++) p[i] *= this.rests[node];
      for (let child = this.first[node]; child < this.first[node + 1]; child++)
        p[this.tokens[child]] += this.shares[child];
    }
    const logits = Float32Array.from(p, Math.log);
    if (this.ends === "never" || (this.ends === "nonempty" && last === BOUNDARY)) logits[BOUNDARY] = IMPOSSIBLE;
    return logits;
  }
}

class Mixture {
  static async open(described, bytes, report) {
    const members = [];
    for (const member of described.members) members.push(await readModel(member, bytes, report));
    return new Mixture(members, readProgram(described.mix, bytes));
  }

  constructor(members, program) {
    Object.assign(this, { members, program, startCost: Math.max(...members.map((member) => member.startCost)) });
  }

  get snapshot() {
    return this.members.map((member) => member.snapshot);
  }

  set snapshot(snapshot) {
    this.members.forEach((member, i) => (member.snapshot = snapshot[i]));
  }

  start(ids) {
    return this.mix(this.members.map((member) => member.start(ids)));
  }

  step(id) {
    return this.mix(this.members.map((member) => member.step(id)));
  }

  mix(logits) {
    return this.program(...logits.map((one) => tensor([one.length], one)))[0].d;
  }
}

const KINDS = { network: Network, count: Count, "context-mixing": ContextMixing, mixture: Mixture };

// Resolves to the model. `report` is called with the share of the text that has been counted, and awaited.
async function readModel(described, bytes, report) {
  const Kind = KINDS[described.kind];
  return Kind.open ? Kind.open(described, bytes, report) : new Kind(described, bytes);
}

// Probabilities (a list) of logits at a temperature, of the most likely `top` tokens only if top > 0.
function probabilities(logits, temperature = 1, top = 0) {
  const cut = top > 0 && top < logits.length ? Float32Array.from(logits).sort()[logits.length - top] : -Infinity;
  const most = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  const p = Array.from(logits, (z) => (z >= cut ? Math.exp((z - most) / temperature) : 0));
  const sum = p.reduce((a, b) => a + b, 0);
  return p.map((x) => x / sum);
}

function argmax(logits) {
  let best = 0;
  for (let i = 1; i < logits.length; i++) if (logits[i] > logits[best]) best = i;
  return best;
}

function sampleToken(p) {
  let u = Math.random();
  for (let i = 0; i < p.length; i++) if ((u -= p[i]) < 0) return i;
  return argmax(p);
}

// Characters: id 0 is the boundary, the alphabet follows. Bytes: id b + 1 is byte b. In lines, a newline is the
// boundary, which begins a document.
class Tokenizer {
  constructor({ alphabet }, lines) {
    this.lines = lines;
    this.letters = alphabet === undefined ? null : ["\n", ...alphabet];
    this.ids = new Map(this.letters?.map((letter, id) => [letter, id]));
    this.begin();
  }

  // Forget the bytes of an unfinished character.
  begin() {
    this.decoder = new TextDecoder();
  }

  // Ids of a text; characters that the model doesn't know are left out.
  encode(text) {
    if (this.letters !== null) return [...text].map((letter) => this.ids.get(letter)).filter((id) => id !== undefined);
    return Array.from(new TextEncoder().encode(text), (byte) => (this.lines && byte === 10 ? BOUNDARY : byte + 1));
  }

  // The characters of a text that the model doesn't know, each once.
  unknown(text) {
    return this.letters === null ? "" : [...new Set(text)].filter((letter) => !this.ids.has(letter)).join("");
  }

  // The text of one more token; bytes of an unfinished character are kept for later.
  decode(id) {
    if (this.letters !== null) return this.letters[id];
    return this.decoder.decode(Uint8Array.of(id === BOUNDARY ? 10 : id - 1), { stream: true });
  }

  // Whether a token can begin a character, or continue one.
  begins(id) {
    return this.letters !== null || id === BOUNDARY || id <= 128 || (id > 0xc2 && id <= 0xf5);
  }

  continues(id) {
    return id > 0x80 && id <= 0xc0;
  }

  // A token by itself, to show.
  name(id) {
    if (this.letters !== null) return this.letters[id];
    const byte = id === BOUNDARY ? 10 : id - 1;
    return byte < 128 ? String.fromCharCode(byte) : `byte ${byte}`;
  }
}
