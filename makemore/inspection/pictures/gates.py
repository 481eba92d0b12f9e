"""Hidden states, gates and cell states of recurrent layers over a text."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from makemore.inspection.capture import record_inputs
from makemore.inspection.figures import labels, new_figure, token_axis
from makemore.inspection.subject import Finding, Picture, Subject
from makemore.models.rnn import Recurrent

MAX_UNITS = 48
OPEN, SHUT = 0.9, 0.1
"""Mean activations above and below which a gate counts as open or shut."""
GATES = ("input gate", "forget gate", "output gate", "reset gate", "update gate")
CAPTION = (
    "One column per token and one row per unit, sorted by mean. Gates range from 0 (shut) to 1 (open), "
    "hidden states and candidates from -1 to 1; cell states are unbounded. At most 48 units are shown, "
    "evenly spaced."
)

Layer = dict[str, Tensor]
"""Values computed by a recurrent layer, (B, T, H) each, by name."""


def plot(subject: Subject) -> Picture | None:
    """Plot states and gates. Returns None for models without recurrent layers."""
    if not isinstance(subject.model, Recurrent):
        return None
    layers = run(subject.model, subject.tokens_T[None])
    rows = [
        (f"layer {n}, {name}" if len(layers) > 1 else name, values[0])
        for n, layer in enumerate(layers)
        for name, values in layer.items()
    ]
    names = labels(subject.tokenizer, subject.tokens_T)
    figure = new_figure(max(6, 0.24 * len(names) + 2.4), 2.6 * len(rows) + 0.4)
    for axes, (name, values_TH) in zip(figure.subplots(len(rows), 1, squeeze=False)[:, 0], rows, strict=True):
        order = values_TH.mean(0).argsort(descending=True)
        shown = order[torch.linspace(0, len(order) - 1, min(MAX_UNITS, len(order))).long()]
        is_gate = name.rpartition(", ")[2] in GATES
        limit = max(1.0, float(values_TH.abs().max()))  # only cell states exceed 1
        low, colours = (0.0, "Blues") if is_gate else (-limit, "RdBu_r")
        values_HT = values_TH[:, shown].T.numpy()
        image = axes.imshow(values_HT, aspect="auto", vmin=low, vmax=limit, cmap=colours)
        axes.set_title(name, fontsize=10)
        axes.set(ylabel="unit", yticks=[])
        token_axis(axes.xaxis, names)
        figure.colorbar(image, ax=axes, pad=0.01, label="0 shut, 1 open" if is_gate else "value")
    axes.set_xlabel("token read")
    return Picture("gates", "Gates and hidden states", CAPTION, figure, interpret(layers))


def interpret(layers: list[Layer]) -> list[Finding]:
    """Count the gates of each kind that are almost always open or shut."""
    findings = []
    for n, layer in enumerate(layers):
        prefix = f"layer {n}: " if len(layers) > 1 else ""
        for name in filter(layer.__contains__, GATES):
            means_H = layer[name].mean((0, 1))
            open_, shut = int((means_H > OPEN).sum()), int((means_H < SHUT).sum())
            text = (
                f"{prefix}of {len(means_H)} units the {name} is open (above {OPEN:g} on average) "
                f"in {open_}, shut (below {SHUT:g}) in {shut}{_meaning(name)}"
            )
            findings.append(Finding("note", text))
    return findings


def _meaning(gate: str) -> str:
    if gate == "forget gate":
        return "; open gates carry memory over many tokens"
    return "; open gates keep the previous state" if gate == "update gate" else ""


@torch.no_grad()
def run(model: Recurrent, tokens_BT: Tensor) -> list[Layer]:
    """Values of each layer on rows that begin a document."""
    ((layers, x_BTC, *_),) = record_inputs(model, nn.RNNBase, lambda: model(tokens_BT))
    assert isinstance(layers, nn.RNNBase)
    return unroll(layers, x_BTC)


@torch.no_grad()
def unroll(layers: nn.RNNBase, x_BTC: Tensor) -> list[Layer]:
    """Run recurrent layers step by step from a zero state, and return each layer's gates and states."""
    step = STEPS[type(layers)]
    result: list[Layer] = []
    for w_ih, w_hh, b_ih, b_hh in layers.all_weights:
        state = (x_BTC.new_zeros(len(x_BTC), layers.hidden_size),) * 2
        parts: list[dict[str, Tensor]] = []
        for x_BC in x_BTC.unbind(1):
            part = step(x_BC @ w_ih.T + b_ih, state[0] @ w_hh.T + b_hh, *state)
            parts.append(part)
            state = (part["hidden"], part.get("cell", part["hidden"]))
        result.append({name: torch.stack([part[name] for part in parts], dim=1) for name in parts[0]})
        x_BTC = result[-1]["hidden"]
    return result


def _rnn(x: Tensor, h: Tensor, hidden: Tensor, cell: Tensor) -> dict[str, Tensor]:
    return {"hidden": torch.tanh(x + h)}


def _gru(x: Tensor, h: Tensor, hidden: Tensor, cell: Tensor) -> dict[str, Tensor]:
    (xr, xz, xn), (hr, hz, hn) = x.chunk(3, 1), h.chunk(3, 1)
    reset, update = torch.sigmoid(xr + hr), torch.sigmoid(xz + hz)
    new = torch.tanh(xn + reset * hn)
    hidden = new + update * (hidden - new)
    return {"reset gate": reset, "update gate": update, "candidate": new, "hidden": hidden}


def _lstm(x: Tensor, h: Tensor, hidden: Tensor, cell: Tensor) -> dict[str, Tensor]:
    i, f, g, o = (x + h).chunk(4, 1)
    in_gate, forget_gate, out_gate = torch.sigmoid(i), torch.sigmoid(f), torch.sigmoid(o)
    cell = forget_gate * cell + in_gate * torch.tanh(g)
    return {
        "input gate": in_gate,
        "forget gate": forget_gate,
        "output gate": out_gate,
        "candidate": torch.tanh(g),
        "cell": cell,
        "hidden": out_gate * torch.tanh(cell),
    }


STEPS: dict[type[nn.RNNBase], Callable[[Tensor, Tensor, Tensor, Tensor], dict[str, Tensor]]] = {
    nn.RNN: _rnn,
    nn.GRU: _gru,
    nn.LSTM: _lstm,
}
