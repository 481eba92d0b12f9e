// Context mixing: engine.c, compiled to WebAssembly. The page holds its weights and the training text, not its counts, which
// are larger than the text: it counts the text when it opens.
"use strict";

const SLICE = 1 << 14; // tokens counted between two reports of progress

class ContextMixing {
  static async open(described, bytes, report) {
    const { instance } = await WebAssembly.instantiate(readTensor(described.code, bytes).d);
    const model = new ContextMixing(instance.exports, described, (name) => readTensor(described[name], bytes));
    await model.count(described.tokens, report);
    return model;
  }

  constructor(code, described, read) {
    const { vocab_size: V, rows } = described;
    this.code = code;
    code._initialize();
    rows.forEach((n, set) => code.set_rows(set, n));
    const zeros = (bytes) => {
      const at = code.allocate(bytes);
      if (at === 0) throw new Error("there isn't enough memory for its counts");
      return at;
    };
    // The address of a copy of an array.
    const put = (name) => {
      const { d } = read(name), at = zeros(d.byteLength);
      new d.constructor(code.memory.buffer, at, d.length).set(d);
      return at;
    };
    code.set_tree(V, BOUNDARY, described.root, described.boundary_node, described.boundary_side, described.has_boundary);
    code.set_tokens(...["kinds", "folded", "rank_of", "token_of", "left", "right"].map(put));
    code.set_cells(...["logs", "levels", "cells", "node_cells"].map(put));
    code.set_mixer(...["weights", "by_node", "by_order", "apms"].map(put));
    code.set_table(zeros(8 * described.n_slots), described.n_slots, zeros(8 * described.lists_size), described.lists_size);
    const history = zeros(4 * described.history_size);
    code.set_history(history, described.history_size, zeros(8 * described.match_slots), described.match_slots);
    new Int32Array(code.memory.buffer, history, described.history_size).set(read("history").d);
    this.logits = zeros(4 * V);
    this.n = V;
    this.startCost = 1;
  }

  async count(tokens, report) {
    for (let begin = 0; begin < tokens; begin += SLICE) {
      this.code.count_text(begin, Math.min(begin + SLICE, tokens));
      await report(begin / tokens);
    }
  }

  get position() {
    return new Uint8Array(this.code.memory.buffer, this.code.position_address(), this.code.position_size());
  }

  get snapshot() {
    return this.position.slice();
  }

  set snapshot(position) {
    this.position.set(position);
  }

  start(ids) {
    this.position.fill(0);
    for (const id of ids.slice(0, -1)) this.code.step(id, 0);
    return this.step(ids.at(-1));
  }

  step(id) {
    this.code.step(id, this.logits);
    return Float32Array.from(new Float32Array(this.code.memory.buffer, this.logits, this.n), (z) => Math.max(z, IMPOSSIBLE));
  }
}
