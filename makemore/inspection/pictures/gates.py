"""What recurrent layers do over a text: hidden vectors, gates and cells, step by step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from makemore.inspection.capture import inputs_of
from makemore.inspection.figures import labels, new_figure, token_axis
from makemore.inspection.subject import Picture, Subject, Verdict
from makemore.models.rnn import Recurrent

UNITS = 48
OPEN, SHUT = 0.9, 0.1
"""A gate above the one, or below the other, on average over the text."""
GATES = ("input gate", "forget gate", "output gate", "reset gate", "update gate")
CAPTION = (
    "A column for each token, a row for each unit, the units ordered by their average. Gates are between 0 "
    "(shut) and 1 (open); hidden vectors and candidates between -1 and 1; cells may grow beyond. At most 48 "
    "units are shown, evenly chosen."
)

Layer = dict[str, Tensor]
"""Of a recurrent layer: what it computed, (B, T, H) each, by name."""


def draw(subject: Subject) -> Picture | None:
    """None for what has no recurrent layers."""
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
        shown = order[torch.linspace(0, len(order) - 1, min(UNITS, len(order))).long()]
        gate = name.rpartition(", ")[2] in GATES
        high = _ceiling(name, values_TH)
        image = axes.imshow(
            values_TH[:, shown].T.numpy(),
            aspect="auto",
            vmin=0.0 if gate else -high,
            vmax=high,
            cmap="viridis" if gate else "RdBu_r",
        )
        axes.set_title(name, fontsize=10)
        axes.set_ylabel("unit")
        axes.set_yticks([])
        token_axis(axes.xaxis, names)
        figure.colorbar(image, ax=axes, pad=0.01, label="0 shut, 1 open" if gate else "value")
    axes.set_xlabel("token read")
    return Picture("gates", "Gates and hidden vectors over a text", CAPTION, figure, judge(layers))


def _ceiling(name: str, values_TH: Tensor) -> float:
    """What colours reach to: cells aren't bounded by 1."""
    return max(1.0, float(values_TH.abs().max())) if name.endswith("cell") else 1.0


def judge(layers: list[Layer]) -> list[Verdict]:
    """How many gates of each kind hardly ever move."""
    verdicts = []
    for n, layer in enumerate(layers):
        where = f"layer {n}: " if len(layers) > 1 else ""
        for name in GATES:
            if name in layer:
                means_H = layer[name].mean((0, 1))
                open_, shut = int((means_H > OPEN).sum()), int((means_H < SHUT).sum())
                verdicts.append(
                    Verdict(
                        "note",
                        f"{where}of {len(means_H)} units the {name} is open (above {OPEN:g} on average) "
                        f"in {open_}, shut (below {SHUT:g}) in {shut}{_meaning(name)}",
                    )
                )
    return verdicts


def _meaning(gate: str) -> str:
    if gate == "forget gate":
        return "; open ones carry memory over many tokens"
    return "; those open keep what they have" if gate == "update gate" else ""


@torch.no_grad()
def run(model: Recurrent, tokens_BT: Tensor) -> list[Layer]:
    """What each layer of a model computes on rows that begin a document."""
    ((layers, x_BTC, *_),) = inputs_of(model, nn.RNNBase, lambda: model(tokens_BT))
    assert isinstance(layers, nn.RNNBase)
    return unrolled(layers, x_BTC)


@torch.no_grad()
def unrolled(layers: nn.RNNBase, x_BTC: Tensor) -> list[Layer]:
    """PyTorch's recurrent layers step by step from zero state, with all that they keep to themselves."""
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
    return {
        "reset gate": reset,
        "update gate": update,
        "candidate": new,
        "hidden": new + update * (hidden - new),
    }


def _lstm(x: Tensor, h: Tensor, hidden: Tensor, cell: Tensor) -> dict[str, Tensor]:
    i, f, g, o = (x + h).chunk(4, 1)
    put, keep, show = torch.sigmoid(i), torch.sigmoid(f), torch.sigmoid(o)
    cell = keep * cell + put * torch.tanh(g)
    return {
        "input gate": put,
        "forget gate": keep,
        "output gate": show,
        "candidate": torch.tanh(g),
        "cell": cell,
        "hidden": show * torch.tanh(cell),
    }


STEPS: dict[type[nn.RNNBase], Callable[[Tensor, Tensor, Tensor, Tensor], dict[str, Tensor]]] = {
    nn.RNN: _rnn,
    nn.GRU: _gru,
    nn.LSTM: _lstm,
}
