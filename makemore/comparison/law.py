"""The power law that predicts a model's loss from its number of parameters and training tokens.

Hoffmann et al. 2022, "Training compute-optimal large language models", approach 3:
loss = E + A / parameters^alpha + B / tokens^beta.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
EXPONENTS = (0.02, 2.0)
"""Bounds of alpha and beta."""
GRID, ZOOMS = 13, 5
"""Exponents tried per dimension, and how often the grid is narrowed around the best pair."""
N_RESAMPLED = 200
N_COEFFICIENTS = 5


@dataclass(frozen=True)
class PowerLaw:
    """loss = E + A / parameters^alpha + B / tokens^beta, in the unit of the losses that it was fitted to."""

    irreducible: float
    parameter_factor: float
    parameter_exponent: float
    token_factor: float
    token_exponent: float

    def predict(self, parameters: Array | float, tokens: Array | float) -> Array:
        """The expected loss; ``parameters`` and ``tokens`` broadcast."""
        by_parameters = self.parameter_factor * np.power(parameters, -self.parameter_exponent)
        by_tokens = self.token_factor * np.power(tokens, -self.token_exponent)
        return np.asarray(self.irreducible + by_parameters + by_tokens)

    def __str__(self) -> str:
        terms = [
            f"{factor:.3g} / {name}^{exponent:.2f}"
            for factor, name, exponent in (
                (self.parameter_factor, "parameters", self.parameter_exponent),
                (self.token_factor, "tokens", self.token_exponent),
            )
            if factor
        ]
        return " + ".join([f"{self.irreducible:.3g}", *terms])


def fit_law(parameters_K: Array, tokens_K: Array, losses_K: Array) -> PowerLaw:
    """Fit a law by least squares of relative errors.

    Given the exponents, the other coefficients solve a non-negative least-squares problem, so only the
    exponents are searched, on a grid that narrows.

    Args:
        parameters_K, tokens_K, losses_K: (K,) float64, one entry per run.
    """
    sizes_K, counts_K = parameters_K / parameters_K.min(), tokens_K / tokens_K.min()  # well conditioned
    low, high = np.full(2, EXPONENTS[0]), np.full(2, EXPONENTS[1])
    for _ in range(ZOOMS):
        axes = [np.geomspace(low[i], high[i], GRID) for i in range(2)]
        pairs_G2 = np.array(list(itertools.product(*axes)))
        columns = [np.ones((len(pairs_G2), len(losses_K)))]
        columns += [base[None] ** -pairs_G2[:, i, None] for i, base in enumerate((sizes_K, counts_K))]
        coefficients_G3, errors_G = _least_squares(np.stack(columns, -1) / losses_K[None, :, None])
        best = int(np.argmin(errors_G))
        ratio = (high / low) ** (1.5 / (GRID - 1))
        low = np.maximum(pairs_G2[best] / ratio, EXPONENTS[0])
        high = np.minimum(pairs_G2[best] * ratio, EXPONENTS[1])
    (e, a, b), (alpha, beta) = coefficients_G3[best], pairs_G2[best]
    return PowerLaw(
        irreducible=float(e),
        parameter_factor=float(a * parameters_K.min() ** alpha),
        parameter_exponent=float(alpha),
        token_factor=float(b * tokens_K.min() ** beta),
        token_exponent=float(beta),
    )


def _least_squares(matrix_GKC: Array) -> tuple[Array, Array]:
    """Non-negative x (G, C) that minimise |matrix x - 1|, and the squared errors (G,)."""
    n_problems, _, n_columns = matrix_GKC.shape
    best_GC, error_G = np.zeros((n_problems, n_columns)), np.full(n_problems, np.inf)
    for size in range(1, n_columns + 1):
        for used in itertools.combinations(range(n_columns), size):
            part_GKU = matrix_GKC[:, :, used]
            gram_GUU = part_GKU.mT @ part_GKU + 1e-12 * np.eye(size)
            x_GU = np.linalg.solve(gram_GUU, part_GKU.sum(1)[..., None])[..., 0]
            errors_G = np.square(np.einsum("gku,gu->gk", part_GKU, x_GU) - 1).sum(1)
            better_G = (x_GU >= 0).all(1) & (errors_G < error_G)
            full_GC = np.zeros_like(best_GC)
            full_GC[:, used] = x_GU
            best_GC[better_G], error_G[better_G] = full_GC[better_G], errors_G[better_G]
    return best_GC, error_G


def resample_laws(
    law: PowerLaw, parameters_K: Array, tokens_K: Array, losses_K: Array, seed: int = 0
) -> tuple[list[PowerLaw], Array]:
    """Fit laws to resampled losses: a bootstrap of residuals (Efron 1979).

    Args:
        law: The law fitted to the losses.
        parameters_K, tokens_K, losses_K: (K,) float64, one entry per run.

    Returns:
        N_RESAMPLED laws, and the relative residuals (K,), enlarged for the number of coefficients.
    """
    rng = np.random.default_rng(seed)
    fitted_K = law.predict(parameters_K, tokens_K)
    freedom = max(1, len(losses_K) - N_COEFFICIENTS)
    # Student's t has wider 95 % limits than the normal distribution, by about the last factor.
    scale = np.sqrt(len(losses_K) / freedom) * (1 + 1.5 / freedom + 0.9 / freedom**2)
    errors_K = (losses_K / fitted_K - 1) * scale
    laws = []
    for _ in range(N_RESAMPLED):
        noisy_K = fitted_K * (1 + rng.choice(errors_K, len(errors_K)))
        laws.append(fit_law(parameters_K, tokens_K, noisy_K))
    return laws, errors_K
