// The operations of torch's core set that programs use, and how a program runs.
"use strict";

const OPERATIONS = {
  _log_softmax: along(logSoftmax),
  _softmax: along(softmax),
  _to_copy: (x, kwargs) => cast(x, kwargs),
  abs: unary("Math.abs(a)", false),
  add: binary("a + b"),
  addmm: (bias, a, b) => (bias.d.length === b.s[1] && bias.s.at(-1) === b.s[1] ? matmul(a, b, bias.d) : OPERATIONS.add(matmul(a, b), bias)),
  amax: reduce(largest),
  avg_pool2d: averagePool,
  bitwise_and: binary("a & b", "integer"),
  bitwise_or: binary("a | b", "integer"),
  bmm: (a, b) => tensor([a.s[0], a.s[1], b.s[2]], product(a.d, b.d, a.s[0], a.s[1], a.s[2], b.s[2])),
  bmm_transposed: (a, b) => tensor([a.s[0], a.s[1], b.s.at(-2)], productTransposed(a.d, b.d, a.s[0], a.s[1], a.s[2], b.s.at(-2))),
  cat: concatenate,
  clamp: (x, low, high) => tensor(x.s, x.d.map((a) => Math.min(Math.max(a, low ?? -Infinity), high ?? Infinity))),
  clone: (x) => x,
  copy: (x, y) => tensor(x.s, x.d.constructor.from(broadcast(y, x.s))),
  cummax: (x, dim) => [along((read, n, write) => { for (let k = 0, most = -Infinity; k < n; k++) write(k, (most = Math.max(most, read(k)))); })(x, dim)],
  cumsum: along((read, n, write) => { for (let k = 0, sum = 0; k < n; k++) write(k, (sum += read(k))); }),
  div: binary("a / b", "real"),
  embedding: (weight, index) => indexSelect(weight, [index]),
  eq: binary("+(a === b)", "integer"),
  exp: unary("Math.exp(a)"),
  expand: (x, shape) => {
    const lead = shape.length - x.s.length, whole = shape.map((n, k) => (n < 0 ? x.s[k - lead] : n));
    return tensor(whole, broadcast(x, whole));
  },
  flip: (x, dims) => dims.reduce((y, dim) => along((read, n, write) => { for (let k = 0; k < n; k++) write(k, read(n - 1 - k)); })(y, dim), x),
  full_like: (x, value, { dtype }) => full(x.s, value, dtype ? !isReal(dtype) : x.d instanceof Int32Array),
  ge: binary("+(a >= b)", "integer"),
  gelu: unary(`0.5 * a * (1 + Math.tanh(${Math.sqrt(2 / Math.PI)} * (a + 0.044715 * a ** 3)))`),
  getitem: (parts, k) => parts[k],
  gt: binary("+(a > b)", "integer"),
  index: indexSelect,
  index_put: (x, indices, values) => indexPut(copy(x), indices, values),
  index_put_in_place: indexPut,
  le: binary("+(a <= b)", "integer"),
  log: unary("Math.log(a)"),
  log1p: unary("Math.log1p(a)"),
  lt: binary("+(a < b)", "integer"),
  maximum: binary("Math.max(a, b)"),
  mean: reduce((read, n) => total(read, n) / n),
  mm: (a, b) => matmul(a, b),
  mul: binary("a * b"),
  native_layer_norm: layerNorm,
  ne: binary("+(a !== b)", "integer"),
  neg: unary("-a", false),
  permute,
  pow: binary("b === 2 ? a * a : a ** b"),
  relu: unary("Math.max(a, 0)", false),
  rsqrt: unary("1 / Math.sqrt(a)"),
  select: (x, dim, k) => {
    const at = axis(x.s, dim), from = k < 0 ? k + x.s[at] : k;
    return tensor(x.s.filter((_, i) => i !== at), slice(x, at, from, from + 1).d);
  },
  sigmoid: unary("1 / (1 + Math.exp(-a))"),
  slice,
  slice_scatter: sliceScatter,
  split_with_sizes: (x, sizes, dim = 0) => {
    let at = 0;
    return sizes.map((n) => slice(x, dim, at, (at += n)));
  },
  squeeze: (x, dims) => {
    const gone = [dims].flat().map((dim) => axis(x.s, dim)).filter((k) => x.s[k] === 1);
    return tensor(x.s.filter((_, k) => !gone.includes(k)), x.d);
  },
  sub: binary("a - b"),
  sum: reduce(total),
  tanh: unary("Math.tanh(a)"),
  transpose: (x, a, b) => {
    const dims = x.s.map((_, k) => k), [i, j] = [axis(x.s, a), axis(x.s, b)];
    [dims[i], dims[j]] = [j, i];
    return permute(x, dims);
  },
  unfold,
  unsqueeze: (x, dim) => {
    const shape = [...x.s];
    shape.splice(dim < 0 ? dim + x.s.length + 1 : dim, 0, 1);
    return tensor(shape, x.d);
  },
  view: viewed,
  where: (condition, a, b) => {
    const shape = commonShape(condition.s, a.s, b.s), [c, x, y] = [condition, a, b].map((t) => broadcast(t, shape));
    const out = full(shape, 0, !(x instanceof Float32Array || y instanceof Float32Array));
    for (let i = 0; i < out.d.length; i++) out.d[i] = c[i] ? x[i] : y[i];
    return out;
  },
};

// A function of tensors that runs a program; its result is the list of outputs.
function compile({ constants, inputs, operations, outputs }) {
  // A function that reads an argument from the list of values.
  const reader = (spec) => {
    if (Array.isArray(spec)) {
      const readers = spec.map(reader);
      return (values) => readers.map((read) => read(values));
    }
    if (spec?.v !== undefined) return (values) => values[spec.v];
    const constant = spec === null || typeof spec !== "object" ? spec : number(spec);
    return () => constant;
  };
  const steps = operations.map(([name, args, kwargs]) => {
    const named = Object.keys(kwargs).length ? [kwargs] : name === "full_like" || name === "_to_copy" ? [{}] : [];
    return { run: OPERATIONS[name], readers: [...args.map(reader), ...named.map((options) => () => options)] };
  });
  const results = outputs.map(reader);
  return (...tensors) => {
    const values = [...constants, ...tensors];
    for (const { run, readers } of steps) values.push(run(...readers.map((read) => read(values))));
    return results.map((read) => read(values));
  };
}
