"""Reverse-mode automatic differentiation of scalars, small enough to read in one sitting.

Each operation records its inputs and its local derivative with respect to each. ``backward`` applies the
chain rule: from the result backwards, every value passes its gradient times the local derivative to its
inputs (Wengert 1964; Linnainmaa 1970; backpropagation: Rumelhart, Hinton & Williams 1986).
The other models do the same with tensors. Run it: ``python -m makemore.micrograd``.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from html import escape
from itertools import pairwise


class Value:
    """A number that remembers what it was computed from."""

    __slots__ = ("data", "grad", "inputs", "label", "local_grads", "op")

    def __init__(
        self,
        data: float,
        inputs: tuple[Value, ...] = (),
        local_grads: tuple[float, ...] = (),
        op: str = "",
        label: str = "",
    ) -> None:
        self.data = float(data)
        self.grad = 0.0
        """d result / d self, once ``backward`` was called on the result; summed over calls for an input."""
        self.inputs, self.local_grads = inputs, local_grads
        """Inputs of the operation, and d self / d input for each."""
        self.op, self.label = op, label

    def __repr__(self) -> str:
        return f"Value({self.label or self.op or 'input'}: data={self.data:.4f}, grad={self.grad:.4f})"

    def __add__(self, other: Value | float) -> Value:
        other = _value(other)
        return Value(self.data + other.data, (self, other), (1.0, 1.0), "+")

    def __mul__(self, other: Value | float) -> Value:
        other = _value(other)
        return Value(self.data * other.data, (self, other), (other.data, self.data), "×")

    def __pow__(self, power: float) -> Value:
        local_grad = power * self.data ** (power - 1)
        return Value(self.data**power, (self,), (local_grad,), f"^{power:g}")

    def exp(self) -> Value:
        out = math.exp(self.data)
        return Value(out, (self,), (out,), "exp")

    def log(self) -> Value:
        return Value(math.log(self.data), (self,), (1 / self.data,), "ln")

    def tanh(self) -> Value:
        out = math.tanh(self.data)
        return Value(out, (self,), (1 - out * out,), "tanh")

    def relu(self) -> Value:
        return Value(max(self.data, 0.0), (self,), (float(self.data > 0),), "relu")

    def __neg__(self) -> Value:
        return self * -1.0

    def __sub__(self, other: Value | float) -> Value:
        return self + -_value(other)

    def __truediv__(self, other: Value | float) -> Value:
        return self * _value(other) ** -1

    def __radd__(self, other: float) -> Value:
        return self + other

    def __rmul__(self, other: float) -> Value:
        return self * other

    def __rsub__(self, other: float) -> Value:
        return _value(other) - self

    def __rtruediv__(self, other: float) -> Value:
        return _value(other) / self

    def backward(self) -> None:
        """Add d self / d value to ``grad`` of every input of this value's graph, as in PyTorch.

        Gradients of several calls add up, so set the gradients of the parameters to zero before each step.
        The results of operations get the gradient of this call only.
        """
        values = topological_order(self)
        for value in values:
            if value.inputs:
                value.grad = 0.0
        self.grad += 1.0
        for value in reversed(values):
            for source, local_grad in zip(value.inputs, value.local_grads, strict=True):
                source.grad += local_grad * value.grad  # a sum: a value may be used more than once


def _value(number: Value | float) -> Value:
    return number if isinstance(number, Value) else Value(number)


def topological_order(result: Value) -> list[Value]:
    """The values a result was computed from, in topological order: inputs first, the result last."""
    done: dict[int, Value] = {}
    stack: list[tuple[Value, bool]] = [(result, False)]
    while stack:  # an explicit stack: recursion is too shallow for long sums
        value, inputs_done = stack.pop()
        if inputs_done:
            done.setdefault(id(value), value)
        elif id(value) not in done:
            stack.append((value, True))
            stack.extend((source, False) for source in reversed(value.inputs))
    return list(done.values())


# --- neural networks ----------------------------------------------------------------------------


class MLP:
    """Multilayer perceptron; each neuron is the tanh of a weighted sum: ``MLP([3, 4, 4, 1])``."""

    def __init__(self, sizes: Sequence[int], seed: int = 0) -> None:
        rng = random.Random(seed)

        def neuron(n: int) -> list[Value]:  # weights, then bias
            return [Value(rng.uniform(-1, 1) / math.sqrt(n)) for _ in range(n)] + [Value(0.0)]

        self.layers = [[neuron(n) for _ in range(m)] for n, m in pairwise(sizes)]

    def __call__(self, x: Sequence[Value | float]) -> list[Value]:
        outputs = [_value(value) for value in x]
        for layer in self.layers:
            outputs = [
                sum((w * x_i for w, x_i in zip(weights, outputs, strict=True)), bias).tanh()
                for *weights, bias in layer
            ]
        return outputs

    def parameters(self) -> list[Value]:
        return [value for layer in self.layers for neuron in layer for value in neuron]


def cross_entropy(logits: Sequence[Value], target: int) -> Value:
    """Negative log of the softmax probability of the target."""
    max_logit = max(logit.data for logit in logits)  # cancels out, but keeps exp small
    total = sum((logit - max_logit).exp() for logit in logits)
    return _value(total).log() + max_logit - logits[target]


class Bigram:
    """Neural bigram model: for each character, a row of logits for the next character."""

    def __init__(self, names: Sequence[str]) -> None:
        self.letters = "." + "".join(sorted(set("".join(names))))  # '.' marks the start and end of a name
        self.rows = [[Value(0.0) for _ in self.letters] for _ in self.letters]

    def loss(self, names: Sequence[str]) -> Value:
        """Mean loss in nats per character, including the end of each name."""
        ids = [[self.letters.index(char) for char in f".{name}."] for name in names]
        pairs = [pair for name in ids for pair in pairwise(name)]
        return _value(sum(cross_entropy(self.rows[a], b) for a, b in pairs)) / len(pairs)

    def parameters(self) -> list[Value]:
        return [value for row in self.rows for value in row]


def gradient_descent(
    parameters: Sequence[Value], loss: Callable[[], Value], steps: int, rate: float
) -> list[float]:
    """Gradient descent. Returns the loss before each step."""
    losses = []
    for _ in range(steps):
        current = loss()
        for parameter in parameters:
            parameter.grad = 0.0  # backward adds to the gradients of the last step
        current.backward()
        losses.append(current.data)
        for parameter in parameters:
            parameter.data -= rate * parameter.grad
    return losses


# --- drawing the graph --------------------------------------------------------------------------


def to_text(result: Value) -> str:
    """The graph as a text tree, inputs below results; a repeated value is shown by name only."""
    lines: list[str] = []
    names: dict[int, str] = {}
    stack = [(result, "", "")]
    while stack:
        value, prefix, indent = stack.pop()
        if id(value) in names:
            lines.append(f"{prefix}{names[id(value)]} (above)")
            continue
        names[id(value)] = value.label or f"v{len(names)}"
        operation = f" = {value.op}" if value.op else ""
        lines.append(f"{prefix}{names[id(value)]}{operation}   data {value.data:.4f}   grad {value.grad:.4f}")
        branches = [("├─ ", "│  ")] * (len(value.inputs) - 1) + [("└─ ", "   ")]
        for source, (first, later) in reversed(list(zip(value.inputs, branches, strict=False))):
            stack.append((source, indent + first, indent + later))
    return "\n".join(lines)


def to_dot(result: Value) -> str:
    """The graph in Graphviz's DOT language, for ``dot -Tsvg``."""
    values = topological_order(result)
    names = {id(value): f"v{i}" for i, value in enumerate(values)}
    lines = ["digraph {", "  rankdir=LR; node [shape=record];"]
    for value in values:
        parts = [value.label, value.op, f"data {value.data:.4f}", f"grad {value.grad:.4f}"]
        text = "|".join(part for part in parts if part).replace('"', '\\"')
        lines.append(f'  {names[id(value)]} [label="{text}"];')
        lines += [f"  {names[id(source)]} -> {names[id(value)]};" for source in value.inputs]
    return "\n".join([*lines, "}"])


def to_svg(result: Value) -> str:
    """The graph as an SVG; a value's column is its number of operations from the inputs."""
    positions = _layout(result)
    dx, dy = 150, 64
    columns, rows = (1 + max(part) for part in zip(*positions.values(), strict=True))
    lines, boxes = [], []
    for value in topological_order(result):
        column, row = positions[id(value)]
        x, y = 20 + column * dx, 20 + row * dy
        for source in value.inputs:
            x0, y0 = (20 + i * step for i, step in zip(positions[id(source)], (dx, dy), strict=True))
            lines.append(f'<path d="M{x0 + 104:g} {y0 + 24:g} L{x:g} {y + 24:g}"/>')
        title = " = ".join(part for part in (value.label, value.op) if part) or "number"
        captions = [title, f"data {value.data:.4f}", f"grad {value.grad:.4f}"]
        texts = "".join(
            f'<text x="{x + 52:g}" y="{y + 14 + 14 * i:g}">{escape(caption)}</text>'
            for i, caption in enumerate(captions)
        )
        boxes.append(f'<rect x="{x:g}" y="{y:g}" width="104" height="48" rx="4"/>{texts}')
    size = f'width="{columns * dx:g}" height="{rows * dy + 24:g}"'
    style = (
        "rect{fill:#fff;stroke:#333}path{stroke:#999;fill:none}"
        "text{font:11px monospace;fill:#000;text-anchor:middle}"
    )
    body = "".join(lines + boxes)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{style}</style>{body}</svg>\n'


def _layout(result: Value) -> dict[int, tuple[int, float]]:
    """Column and row of each value, near its inputs' mean row; a leaf is one column before its first use."""
    values = topological_order(result)
    depth: dict[int, int] = {}
    for value in values:
        depth[id(value)] = 1 + max((depth[id(source)] for source in value.inputs), default=-1)
    for value in reversed(values):
        for source in value.inputs:
            if not source.inputs:
                users = [depth[id(v)] for v in values if source in v.inputs]
                depth[id(source)] = min(users) - 1
    positions: dict[int, tuple[int, float]] = {}
    for value in values:
        input_rows = [positions[id(source)][1] for source in value.inputs]
        n_leaves = sum(not v.inputs for v in values[: values.index(value)])
        row = sum(input_rows) / len(input_rows) if input_rows else float(n_leaves)
        taken = [r for column, r in positions.values() if column == depth[id(value)]]
        while any(abs(row - other) < 1 for other in taken):
            row += 0.5
        positions[id(value)] = (depth[id(value)], row)
    return positions


def main() -> None:
    """Print a neuron with its gradients, then train an MLP on four examples and a bigram on five names."""
    x, w, b = Value(2.0, label="x"), Value(-0.5, label="w"), Value(1.6, label="b")
    out = (x * w + b).tanh()
    out.label = "out"
    out.backward()
    print(to_text(out), "\n")

    examples = [
        ([2.0, 3.0, -1.0], 1.0),
        ([3.0, -1.0, 0.5], -1.0),
        ([0.5, 1.0, 1.0], -1.0),
        ([1.0, 1.0, -1.0], 1.0),
    ]
    net = MLP([3, 4, 4, 1])

    def squared_error() -> Value:
        return _value(sum((net(point)[0] - y) ** 2 for point, y in examples))

    losses = gradient_descent(net.parameters(), squared_error, 100, 0.1)
    print(f"two hidden layers, {len(net.parameters())} parameters: loss {losses[0]:.4f} to {losses[-1]:.4f}")

    names = ["emma", "olivia", "ava", "isabella", "sophia"]
    bigram = Bigram(names)
    losses = gradient_descent(bigram.parameters(), lambda: bigram.loss(names), 50, 10.0)
    print(
        f"bigram of {len(names)} names: {losses[0]:.4f} (ln {len(bigram.letters)}) to {losses[-1]:.4f} nats"
    )


if __name__ == "__main__":
    main()
