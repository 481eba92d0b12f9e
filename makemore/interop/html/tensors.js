// Tensors: {s: shape, d: numbers in C order}, and what operations on them are made of.
"use strict";

const size = (shape) => shape.reduce((a, b) => a * b, 1);
const tensor = (shape, data) => ({ s: shape, d: data });
const copy = (x) => tensor(x.s, x.d.slice());
const empty = (shape, like) => tensor(shape, new like.d.constructor(size(shape)));
const axis = (shape, dim) => (dim < 0 ? dim + shape.length : dim);

function full(shape, value, integer) {
  const data = new (integer ? Int32Array : Float32Array)(size(shape));
  return tensor(shape, value === 0 ? data : data.fill(value));
}

function strides(shape) {
  const result = new Array(shape.length);
  for (let i = shape.length - 1, step = 1; i >= 0; step *= shape[i--]) result[i] = step;
  return result;
}

// Numbers of `source` at offset + index . steps for every index of a shape, in C order.
function gather(source, shape, steps, offset = 0) {
  const out = empty(shape, source), outer = shape.slice(0, -1), index = new Array(outer.length).fill(0);
  const from = source.d, to = out.d, length = shape.at(-1) ?? 1, step = steps.at(-1) ?? 0;
  for (let i = 0, row = offset; i < to.length; ) {
    if (step === 1) to.set(from.subarray(row, row + length), i), (i += length);
    else for (let at = row, end = i + length; i < end; at += step) to[i++] = from[at];
    for (let k = outer.length - 1; k >= 0; k--) {
      row += steps[k];
      if (++index[k] < outer[k]) break;
      row -= steps[k] * outer[k];
      index[k] = 0;
    }
  }
  return out;
}

// Three sizes: of the dimensions before `dim`, of `dim`, and of those after it.
function around(shape, dim) {
  const k = axis(shape, dim);
  return [size(shape.slice(0, k)), shape[k], size(shape.slice(k + 1))];
}

function broadcast(x, shape) {
  if (x.d.length === size(shape)) return x.d;
  if (x.d.length === 1) return new x.d.constructor(size(shape)).fill(x.d[0]);
  const steps = strides(x.s), lead = shape.length - x.s.length;
  return gather(x, shape, shape.map((_, k) => (k < lead || x.s[k - lead] === 1 ? 0 : steps[k - lead]))).d;
}

function sameShape(a, b) {
  return a.length === b.length && a.every((n, k) => n === b[k]);
}

// Whether a shape has one dimension longer than 1, the last, and is shorter than the other shape.
function isRow(shape, other) {
  const n = shape.at(-1);
  return n === other.at(-1) && size(shape) === n && size(other) > n;
}

function commonShape(...shapes) {
  const rank = Math.max(...shapes.map((s) => s.length));
  return Array.from({ length: rank }, (_, k) => Math.max(...shapes.map((s) => s[k - rank + s.length] ?? 1)));
}

// A loop that evaluates an expression of `a` and `b` for each element. Generated, because a loop that calls a function
// takes several times as long.
function loop(expression, second) {
  return new Function("x", "y", "out", `for (let i = 0; i < out.length; i++) { const a = x[i], b = ${second}; out[i] = ${expression}; }`);
}

// Elementwise on two; numbers are scalars. A result of comparisons is whole numbers.
function binary(expression, kind) {
  const ofArrays = loop(expression, "y[i]"), ofNumber = loop(expression, "y"), ofRows = loop(expression, "y[i % y.length]");
  return (a, b) => {
    const scalar = typeof b === "number", shape = scalar || sameShape(a.s, b.s) ? a.s : commonShape(a.s, b.s);
    const real = a.d instanceof Float32Array || (scalar ? !Number.isInteger(b) : b.d instanceof Float32Array);
    const out = full(shape, 0, kind === "integer" || (kind !== "real" && !real)), x = broadcast(a, shape);
    if (scalar || b.d.length === 1) ofNumber(x, scalar ? b : b.d[0], out.d);
    else if (isRow(b.s, shape)) ofRows(x, b.d, out.d);
    else ofArrays(x, broadcast(b, shape), out.d);
    return out;
  };
}

// Elementwise on one; `real` functions have fractions as results, also of whole numbers.
function unary(expression, real = true) {
  const run = loop(expression, "y");
  return (x) => {
    const out = real ? full(x.s, 0, false) : empty(x.s, x);
    run(x.d, 0, out.d);
    return out;
  };
}

// Each run of numbers along `dim` goes through f(read, n, write).
function along(f) {
  return (x, dim) => {
    const [outer, n, inner] = around(x.s, dim), out = empty(x.s, x);
    for (let o = 0; o < outer; o++)
      for (let i = 0; i < inner; i++) {
        const at = (k) => (o * n + k) * inner + i;
        f((k) => x.d[at(k)], n, (k, value) => (out.d[at(k)] = value));
      }
    return out;
  };
}

function reduce(f) {
  return (x, dims, keep = false) => {
    const reduced = (dims?.length ? dims.map((dim) => axis(x.s, dim)) : x.s.map((_, k) => k)).sort((a, b) => b - a);
    let result = x;
    for (const dim of reduced) {
      const [outer, n, inner] = around(result.s, dim);
      const out = empty(result.s.map((length, k) => (k === dim ? 1 : length)), result);
      for (let o = 0; o < outer; o++)
        for (let i = 0; i < inner; i++) out.d[o * inner + i] = f((k) => result.d[(o * n + k) * inner + i], n);
      result = out;
    }
    return keep ? result : tensor(x.s.filter((_, k) => !reduced.includes(k)), result.d);
  };
}

function total(read, n) {
  let sum = 0;
  for (let k = 0; k < n; k++) sum += read(k);
  return sum;
}

function largest(read, n) {
  let most = -Infinity;
  for (let k = 0; k < n; k++) most = Math.max(most, read(k));
  return most;
}

function softmax(read, n, write) {
  const most = largest(read, n);
  let sum = 0;
  for (let k = 0; k < n; k++) sum += Math.exp(read(k) - most);
  for (let k = 0; k < n; k++) write(k, Math.exp(read(k) - most) / sum);
}

function logSoftmax(read, n, write) {
  const most = largest(read, n);
  let sum = 0;
  for (let k = 0; k < n; k++) sum += Math.exp(read(k) - most);
  for (let k = 0; k < n; k++) write(k, read(k) - most - Math.log(sum));
}

// Products of matrices: a (batch, rows, depth) by b (batch, depth, columns). Four rows of b at a time, to load and store
// the sums less often.
function product(a, b, batch, rows, depth, columns, start) {
  const out = new Float32Array(batch * rows * columns), sums = new Float64Array(columns);
  for (let n = 0; n < batch; n++)
    for (let r = 0; r < rows; r++) {
      if (start) for (let c = 0; c < columns; c++) sums[c] = start[c];
      else sums.fill(0);
      const row = (n * rows + r) * depth;
      let k = 0;
      for (; k + 4 <= depth; k += 4) {
        const w = a[row + k], x = a[row + k + 1], y = a[row + k + 2], z = a[row + k + 3];
        if (w === 0 && x === 0 && y === 0 && z === 0) continue;
        const i = (n * depth + k) * columns, j = i + columns, l = j + columns, m = l + columns;
        for (let c = 0; c < columns; c++) sums[c] += w * b[i + c] + x * b[j + c] + y * b[l + c] + z * b[m + c];
      }
      for (; k < depth; k++) {
        const x = a[row + k], i = (n * depth + k) * columns;
        for (let c = 0; c < columns; c++) sums[c] += x * b[i + c];
      }
      out.set(sums, (n * rows + r) * columns);
    }
  return out;
}

// The same with b (batch, columns, depth).
function productTransposed(a, b, batch, rows, depth, columns) {
  const out = new Float32Array(batch * rows * columns);
  for (let n = 0, at = 0; n < batch; n++)
    for (let r = 0; r < rows; r++)
      for (let c = 0, j = n * columns * depth; c < columns; c++) {
        let sum = 0;
        for (let i = (n * rows + r) * depth, end = i + depth; i < end; ) sum += a[i++] * b[j++];
        out[at++] = sum;
      }
  return out;
}

function matmul(a, b, start) {
  const [rows, depth] = a.s, columns = b.s[1];
  return tensor([rows, columns], product(a.d, b.d, 1, rows, depth, columns, start));
}

function permute(x, dims) {
  const shape = dims.map((k) => x.s[axis(x.s, k)]), moved = dims.map((k) => axis(x.s, k)).filter((k) => x.s[k] > 1);
  if (moved.every((k, i) => i === 0 || moved[i - 1] < k)) return tensor(shape, x.d);
  const steps = strides(x.s);
  return gather(x, shape, dims.map((k) => steps[axis(x.s, k)]));
}

function slice(x, dim = 0, start = 0, end = Infinity, step = 1) {
  const k = axis(x.s, dim), n = x.s[k];
  const clip = (at) => Math.min(Math.max(at < 0 ? at + n : at, 0), n), from = clip(start ?? 0);
  const length = Math.max(0, Math.ceil((clip(end ?? n) - from) / step)), steps = strides(x.s);
  const shape = x.s.map((size, i) => (i === k ? length : size));
  return gather(x, shape, steps.map((stride, i) => (i === k ? stride * step : stride)), from * steps[k]);
}

function concatenate(parts, dim = 0) {
  const used = parts.filter((part) => part.d.length || part.s.length > 1), k = axis(used[0].s, dim);
  const shape = used[0].s.map((length, i) => (i === k ? used.reduce((sum, part) => sum + part.s[k], 0) : length));
  const out = empty(shape, used[0]), row = size(shape.slice(k));
  let at = 0;
  for (const part of used) {
    const width = size(part.s.slice(k)), outer = size(shape.slice(0, k));
    for (let o = 0; o < outer; o++) out.d.set(part.d.subarray(o * width, (o + 1) * width), o * row + at);
    at += width;
  }
  return out;
}

// Positions in x of the rows that a list of index tensors (or null) selects, for leading dimensions.
function positions(x, indices) {
  const shape = commonShape(...indices.map((index) => index.s)), steps = strides(x.s), n = size(shape);
  const columns = indices.map((index) => broadcast(index, shape)), at = new Int32Array(n);
  for (let i = 0; i < n; i++) columns.forEach((column, k) => (at[i] += (column[i] < 0 ? column[i] + x.s[k] : column[i]) * steps[k]));
  return { shape, at, rest: x.s.slice(indices.length) };
}

function indexSelect(x, indices) {
  const { shape, at, rest } = positions(x, indices), width = size(rest), out = empty([...shape, ...rest], x);
  at.forEach((from, i) => out.d.set(x.d.subarray(from, from + width), i * width));
  return out;
}

// Changes x.
function indexPut(x, indices, values) {
  const { shape, at, rest } = positions(x, indices), width = size(rest);
  const from = broadcast(values, [...shape, ...rest]);
  at.forEach((to, i) => x.d.set(from.subarray(i * width, (i + 1) * width), to));
  return x;
}

function unfold(x, dim, length, step) {
  const k = axis(x.s, dim), steps = strides(x.s);
  const shape = [...x.s.map((n, i) => (i === k ? Math.floor((n - length) / step) + 1 : n)), length];
  return gather(x, shape, [...steps.map((stride, i) => (i === k ? stride * step : stride)), steps[k]]);
}

function averagePool(x, [height, width]) {
  const rank = x.s.length, windows = unfold(unfold(x, rank - 2, height, 1), rank - 1, width, 1);
  return OPERATIONS.mean(windows, [rank, rank + 1]);
}

function sliceScatter(x, part, dim = 0, start = 0) {
  const k = axis(x.s, dim), n = x.s[k], out = copy(x), inner = size(x.s.slice(k + 1)), width = part.s[k] * inner;
  const from = Math.min(Math.max(start < 0 ? start + n : start ?? 0, 0), n);
  for (let o = 0; o < size(x.s.slice(0, k)); o++)
    out.d.set(part.d.subarray(o * width, (o + 1) * width), (o * n + from) * inner);
  return out;
}

function layerNorm(x, shape, weight, bias, eps) {
  const n = size(shape), out = empty(x.s, x);
  for (let row = 0; row < x.d.length; row += n) {
    const mean = total((k) => x.d[row + k], n) / n;
    const scale = 1 / Math.sqrt(total((k) => (x.d[row + k] - mean) ** 2, n) / n + eps);
    for (let k = 0; k < n; k++) out.d[row + k] = (x.d[row + k] - mean) * scale * (weight ? weight.d[k] : 1) + (bias ? bias.d[k] : 0);
  }
  return [out];
}

function viewed(x, shape) {
  const known = shape.reduce((a, b) => (b < 0 ? a : a * b), 1);
  return tensor(shape.map((n) => (n < 0 ? x.d.length / known : n)), x.d);
}

const isReal = (dtype) => /^b?float/.test(dtype);

function cast(x, { dtype }) {
  if (dtype === undefined) return x;
  if (dtype === "bool") return tensor(x.s, Int32Array.from(x.d, (a) => +(a !== 0)));
  return tensor(x.s, isReal(dtype) ? Float32Array.from(x.d) : Int32Array.from(x.d));
}

// A number from JSON, where infinity and NaN are {float: name}.
function number(value) {
  return typeof value === "number" ? value : Number({ inf: Infinity, "-inf": -Infinity }[value.float] ?? NaN);
}
