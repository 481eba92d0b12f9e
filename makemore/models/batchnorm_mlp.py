"""A deep MLP with batch normalisation whose backward pass is written by hand.

The fixed window of Bengio et al. 2003 with batch normalisation (Ioffe & Szegedy 2015) and Kaiming
initialisation (He et al. 2015). Gradients come in two versions: step by step through every intermediate
value, or fused, with closed-form gradients of cross-entropy and batch normalisation.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from makemore.models.base import ManualModel, zero_head
from makemore.models.layers.batchnorm import BatchNorm
from makemore.models.layers.windows import token_windows
from makemore.settings import ModelConfig, Size
from makemore.types import IGNORE_INDEX, State


class BatchNormMLPConfig(ModelConfig):
    """Settings of ``batchnorm-mlp``."""

    name: Literal["batchnorm-mlp"] = "batchnorm-mlp"
    block_size: Size = Field(3, description="context length in tokens")
    n_embd: Size = Field(24, description="embedding width")
    n_hidden: Size = Field(256, description="width of each hidden layer")
    n_layer: Size = Field(1, description="number of hidden layers")
    momentum: float = Field(0.1, gt=0, le=1, description="weight of a new batch in the running statistics")
    eps: float = Field(1e-5, gt=0, description="added to the variance for numerical stability")
    backprop: Literal["fused", "steps"] = Field(
        "fused", description="backward pass: closed-form gradients, or through every intermediate value"
    )


class BatchNormMLP(ManualModel):
    """MLP over the last ``block_size`` tokens, padded with boundary tokens before a document."""

    Config: ClassVar[type[BatchNormMLPConfig]] = BatchNormMLPConfig
    supports_packing = True
    train_defaults = {"batch_tokens": 4096}
    summary = "deep tanh MLP with batch normalisation and hand-written gradients"

    def __init__(self, config: BatchNormMLPConfig, vocab_size: int, boundary_id: int) -> None:
        super().__init__(config, vocab_size, boundary_id)
        self.max_len = config.block_size
        self.embedding = nn.Embedding(vocab_size, config.n_embd)
        widths = [config.block_size * config.n_embd] + [config.n_hidden] * config.n_layer
        # No biases: batch normalisation subtracts them again.
        self.hidden = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(
            BatchNorm(config.n_hidden, config.momentum, config.eps) for _ in self.hidden
        )
        self.head = zero_head(config.n_hidden, vocab_size)
        for layer, _ in self._layers:
            # Kaiming initialisation with tanh's gain keeps the units out of saturation.
            nn.init.normal_(layer.weight, std=5 / 3 / math.sqrt(layer.in_features))

    def init_state(self, batch_size: int, capacity: int) -> State:
        """The last block_size - 1 tokens, (B, block_size - 1) int64."""
        shape = (batch_size, self.config.block_size - 1)
        return (torch.full(shape, self.boundary_id, device=self.device),)

    def forward(
        self, tokens_BT: Tensor, state: State | None = None, valid_BT: Tensor | None = None
    ) -> tuple[Tensor, State | None]:
        """In training, ``valid_BT`` must mark the valid targets, to match ``loss_and_grads``."""
        windows_BTK, new_state = self._windows(tokens_BT, state)
        hidden = self.embedding(windows_BTK).flatten(2)
        for layer, norm in self._layers:
            hidden = torch.tanh(norm(layer(hidden), valid_BT))
        return self.exclude_ends(self.head(hidden), tokens_BT), new_state

    @torch.no_grad()
    def loss_and_grads(self, inputs_BT: Tensor, targets_BT: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and gradients with the statistics of the valid positions; updates the running statistics."""
        windows_NK, targets_N = self._examples(inputs_BT, targets_BT)
        if self.config.backprop == "fused":
            return self._fused(windows_NK, targets_N)
        values = self._forward_steps(windows_NK, targets_N)
        for i, (_, norm) in enumerate(self._layers):
            mean, var = values[f"bnmeani.{i}"], values[f"bnvar.{i}"]
            norm.update_running_stats(mean, var, mean.new_full((), len(targets_N)))
        grads = self._backward_steps(values, windows_NK, targets_N)
        return values["loss"], {name: grads[name] for name, _ in self.named_parameters()}

    def intermediates(self, inputs_BT: Tensor, targets_BT: Tensor) -> dict[str, Tensor]:
        """All forward values up to ``loss`` by name, differentiable; names of layer i end in ``.i``."""
        return self._forward_steps(*self._examples(inputs_BT, targets_BT))

    @torch.no_grad()
    def intermediate_grads(self, inputs_BT: Tensor, targets_BT: Tensor) -> dict[str, Tensor]:
        """Hand-written gradients of the loss for every intermediate value and parameter, by name."""
        examples = self._examples(inputs_BT, targets_BT)
        return self._backward_steps(self._forward_steps(*examples), *examples)

    @property
    def _layers(self) -> list[tuple[nn.Linear, BatchNorm]]:
        layers = zip(self.hidden, self.norms, strict=True)
        return cast("list[tuple[nn.Linear, BatchNorm]]", list(layers))

    def _windows(self, tokens_BT: Tensor, state: State | None) -> tuple[Tensor, State | None]:
        """The last K = block_size tokens at each position, (B, T, K), and the next state."""
        return token_windows(tokens_BT, state, self.config.block_size, self.boundary_id)

    def _examples(self, inputs_BT: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Windows (N, K) and targets (N,) of the N positions with valid targets."""
        index_N = (targets_BT != IGNORE_INDEX).flatten().nonzero().squeeze(1)
        windows_BTK, _ = self._windows(inputs_BT, None)
        return windows_BTK.flatten(0, 1)[index_N], targets_BT.flatten()[index_N]

    def _fused(self, windows_NK: Tensor, targets_N: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Forward and backward with closed-form gradients of cross-entropy and batch normalisation."""
        n = max(len(targets_N), 1)
        x = F.embedding(windows_NK, self.embedding.weight).flatten(1)
        saved = []
        for layer, norm in self._layers:
            hpreact, normalised, inverse_std = norm.manual_forward(x @ layer.weight.T)
            saved.append((x, normalised, inverse_std))
            x = hpreact.tanh_()

        logprobs = F.log_softmax(self.exclude_ends(self.head(x), windows_NK[:, -1]), dim=1)
        loss = F.nll_loss(logprobs, targets_N, reduction="sum") / n
        # d loss / d logits = (softmax - onehot(target)) / n
        dlogits = logprobs.exp_()
        dlogits[torch.arange(len(targets_N), device=targets_N.device), targets_N] -= 1
        dlogits /= n
        grads = {"head.weight": dlogits.T @ x, "head.bias": dlogits.sum(0)}
        dx = dlogits @ self.head.weight
        for i, (layer, norm) in reversed(list(enumerate(self._layers))):
            scratch = x.square_()  # reuses the memory of the layer's output; d tanh = 1 - h²
            dx.addcmul_(dx, scratch, value=-1)
            x, normalised, inverse_std = saved[i]
            dx, dgain, dbias = norm.manual_backward(dx, normalised, inverse_std, scratch)
            grads |= {f"norms.{i}.weight": dgain, f"norms.{i}.bias": dbias}
            grads[f"hidden.{i}.weight"] = dx.T @ x
            dx = dx @ layer.weight
        grads["embedding.weight"] = self._embedding_grad(windows_NK, dx)
        return loss, grads

    def _embedding_grad(self, windows_NK: Tensor, dembcat: Tensor) -> Tensor:
        """Sum the gradients of all positions that looked up each token, (V, E)."""
        grad_VE = torch.zeros_like(self.embedding.weight)
        return grad_VE.index_add_(0, windows_NK.flatten(), dembcat.view(-1, grad_VE.shape[1]))

    def _forward_steps(self, windows_NK: Tensor, targets_N: Tensor) -> dict[str, Tensor]:
        """The forward pass in elementary steps, returning every value by name.

        This plain softmax underflows for probabilities below about 1e-45 in float32; ``_fused`` uses
        log-softmax, which does not.
        """
        v: dict[str, Tensor] = {}
        n = max(len(targets_N), 1)
        v["emb"] = self.embedding.weight[windows_NK]
        v["embcat"] = x = v["emb"].flatten(1)
        for i, (layer, norm) in enumerate(self._layers):
            v[f"hprebn.{i}"] = x @ layer.weight.T
            v[f"bnmeani.{i}"] = v[f"hprebn.{i}"].sum(0) / n
            v[f"bndiff.{i}"] = v[f"hprebn.{i}"] - v[f"bnmeani.{i}"]
            v[f"bndiff2.{i}"] = v[f"bndiff.{i}"] ** 2
            v[f"bnvar.{i}"] = v[f"bndiff2.{i}"].sum(0) / n
            v[f"bnvar_inv.{i}"] = (v[f"bnvar.{i}"] + norm.eps) ** -0.5
            v[f"bnraw.{i}"] = v[f"bndiff.{i}"] * v[f"bnvar_inv.{i}"]
            v[f"hpreact.{i}"] = norm.weight * v[f"bnraw.{i}"] + norm.bias
            v[f"h.{i}"] = x = torch.tanh(v[f"hpreact.{i}"])
        v["logits"] = self.exclude_ends(x @ self.head.weight.T + self.head.bias, windows_NK[:, -1])
        v["logit_maxes"] = v["logits"].max(1, keepdim=True).values
        v["norm_logits"] = v["logits"] - v["logit_maxes"]
        v["counts"] = v["norm_logits"].exp()
        v["counts_sum"] = v["counts"].sum(1, keepdim=True)
        v["counts_sum_inv"] = v["counts_sum"] ** -1
        v["probs"] = v["counts"] * v["counts_sum_inv"]
        v["logprobs"] = v["probs"].log()
        v["loss"] = F.nll_loss(v["logprobs"], targets_N, reduction="sum") / n
        return v

    def _backward_steps(
        self, v: dict[str, Tensor], windows_NK: Tensor, targets_N: Tensor
    ) -> dict[str, Tensor]:
        """Gradients of every value of ``_forward_steps`` and every parameter, last to first."""
        g = _backward_cross_entropy(v, targets_N)
        last = self.config.n_layer - 1
        g["head.weight"] = g["logits"].T @ v[f"h.{last}"]
        g["head.bias"] = g["logits"].sum(0)
        g[f"h.{last}"] = g["logits"] @ self.head.weight
        for i, (layer, norm) in reversed(list(enumerate(self._layers))):
            _backward_layer(i, norm.weight, v, g)
            below = f"h.{i - 1}" if i else "embcat"
            g[f"hidden.{i}.weight"] = g[f"hprebn.{i}"].T @ v[below]
            g[below] = g[f"hprebn.{i}"] @ layer.weight
        g["emb"] = g["embcat"].view_as(v["emb"])
        g["embedding.weight"] = self._embedding_grad(windows_NK, g["embcat"])
        return g


def _backward_cross_entropy(v: dict[str, Tensor], targets_N: Tensor) -> dict[str, Tensor]:
    """Gradients from ``loss`` back to ``logits``."""
    n = max(len(targets_N), 1)
    g = {"loss": torch.ones_like(v["loss"])}
    g["logprobs"] = torch.zeros_like(v["logprobs"]).scatter_(1, targets_N[:, None], -1 / n)
    g["probs"] = g["logprobs"] / v["probs"]
    g["counts_sum_inv"] = (g["probs"] * v["counts"]).sum(1, keepdim=True)
    g["counts_sum"] = -g["counts_sum_inv"] * v["counts_sum_inv"] ** 2
    g["counts"] = g["probs"] * v["counts_sum_inv"] + g["counts_sum"]
    g["norm_logits"] = g["counts"] * v["counts"]
    g["logit_maxes"] = -g["norm_logits"].sum(1, keepdim=True)
    argmax = v["logits"].argmax(1, keepdim=True)
    g["logits"] = g["norm_logits"].scatter_add(1, argmax, g["logit_maxes"])
    return g


def _backward_layer(i: int, weight: Tensor, v: dict[str, Tensor], g: dict[str, Tensor]) -> None:
    """Add to ``g`` the gradients of layer i, from ``h`` back to ``hprebn``."""
    n = max(len(v[f"h.{i}"]), 1)
    g[f"hpreact.{i}"] = g[f"h.{i}"] * (1 - v[f"h.{i}"] ** 2)
    g[f"norms.{i}.weight"] = (g[f"hpreact.{i}"] * v[f"bnraw.{i}"]).sum(0)
    g[f"norms.{i}.bias"] = g[f"hpreact.{i}"].sum(0)
    g[f"bnraw.{i}"] = g[f"hpreact.{i}"] * weight
    g[f"bnvar_inv.{i}"] = (g[f"bnraw.{i}"] * v[f"bndiff.{i}"]).sum(0)
    g[f"bnvar.{i}"] = -0.5 * g[f"bnvar_inv.{i}"] * v[f"bnvar_inv.{i}"] ** 3
    g[f"bndiff2.{i}"] = (g[f"bnvar.{i}"] / n).expand_as(v[f"bndiff2.{i}"])
    g[f"bndiff.{i}"] = g[f"bnraw.{i}"] * v[f"bnvar_inv.{i}"] + 2 * v[f"bndiff.{i}"] * g[f"bndiff2.{i}"]
    g[f"bnmeani.{i}"] = -g[f"bndiff.{i}"].sum(0)
    g[f"hprebn.{i}"] = g[f"bndiff.{i}"] + g[f"bnmeani.{i}"] / n
