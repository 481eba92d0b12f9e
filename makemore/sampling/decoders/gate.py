"""A mixture's mixing in numpy, which dispatches faster than torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from makemore.models.base import MixtureModel
from makemore.models.mixture import Mixture
from makemore.models.mixture.gate import MIN_LOG_PROB, Gate
from makemore.sampling.decoders.base import Linear, to_array
from makemore.types import Floats32


class Mixer:
    """Mixes the members' log-probabilities."""

    def __init__(self, model: MixtureModel) -> None:
        gate = model.gates[0] if isinstance(model, Mixture) and model.is_gated else None
        self.gate = _NumpyGate(gate) if isinstance(gate, Gate) else None
        with np.errstate(divide="ignore"):  # a weight may be 0
            self.log_weights_K = np.log(model.weights.cpu().numpy()).astype(np.float32)

    def __call__(self, log_probs_BKV: Floats32) -> Floats32:
        """Logits (B, V) of log-probabilities (B, K, V)."""
        if self.gate is None:
            return np.logaddexp.reduce(log_probs_BKV + self.log_weights_K[:, None], axis=1)
        return self.gate(log_probs_BKV)


class _NumpyGate:
    """``Gate.forward`` but for the normalisation."""

    def __init__(self, gate: Gate) -> None:
        self.mean, self.scale = to_array(gate.mean), to_array(gate.scale)
        self.hidden, self.out = Linear.from_layer(gate.hidden), Linear.from_layer(gate.out)
        self.log_shares = None if gate.shares is None else np.log(to_array(gate.shares))

    def __call__(self, log_probs_BKV: Floats32) -> Floats32:
        product_BV = self._product(np.maximum(log_probs_BKV, np.float32(MIN_LOG_PROB)))
        if self.log_shares is None:
            return product_BV
        product_BV -= np.logaddexp.reduce(product_BV, axis=-1, keepdims=True)
        members_BV = np.logaddexp.reduce(log_probs_BKV + self.log_shares[1:, None], axis=1)
        return np.logaddexp(product_BV + self.log_shares[0], members_BV)

    def _product(self, z_BKV: Floats32) -> Floats32:
        p_BKV: NDArray[np.float32] = np.exp(z_BKV)
        average_B1V = p_BKV.mean(axis=1, keepdims=True)
        columns = ((p_BKV * z_BKV).sum(-1), z_BKV.max(-1), (average_B1V * z_BKV).sum(-1))
        features = np.concatenate(columns, axis=-1)
        hidden = np.tanh(self.hidden((features - self.mean) * self.scale))
        weights_BK = np.logaddexp(self.out(hidden), np.float32(0))  # softplus
        return np.matmul(weights_BK[:, None], z_BKV)[:, 0]
