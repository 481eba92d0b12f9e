"""A mixture of models: linear interpolation of their probabilities (Jelinek & Mercer 1980,
"Interpolated estimation of Markov source parameters from sparse data")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from makemore.models.base import LanguageModel, MixtureModel
from makemore.runtime.untrusted import parse_json
from makemore.settings import replace_settings, setting
from makemore.types import State


@dataclass(frozen=True)
class MixtureConfig:
    """Settings of ``mixture``."""

    members: str = setting(
        '[["mlp", {}], ["bigram", {}]]', "member models, as a JSON list of [name, settings] pairs"
    )

    def __post_init__(self) -> None:
        pairs = self.pairs()
        if not pairs or not all(isinstance(n, str) and isinstance(s, dict) for n, s in pairs):
            raise ValueError("members must be a JSON list of [name, settings] pairs")

    def pairs(self) -> list[tuple[str, dict[str, Any]]]:
        """Parse ``members``. Raises ValueError unless it is a list of pairs."""
        return [(name, settings) for name, settings in parse_json(self.members)]


class Mixture(MixtureModel):
    """``log sum_k w_k p_k``: on any token at most -ln w_k nats worse than member k."""

    Config: ClassVar[type] = MixtureConfig
    summary = "weighted sum of trained runs' probabilities, made by makemore mix"

    def __init__(self, config: MixtureConfig, vocab_size: int, boundary_id: int) -> None:
        super().__init__(config, vocab_size, boundary_id)
        # Imported here to avoid a cycle: the registry imports this file.
        from makemore.models import MODELS

        members = []
        for name, settings in config.pairs():
            kind = MODELS.get(name)
            members.append(kind(replace_settings(kind.Config(), settings, "model"), vocab_size, boundary_id))
        self._set_members(members)

    def _set_members(self, members: list[LanguageModel]) -> None:
        self.parts = nn.ModuleList(members)
        self._n_state_tensors = [len(m.init_state(1, 1)) for m in members]
        # float32, because MPS has no float64.
        self.register_buffer("mixing", torch.full((len(members),), 1 / len(members)))
        self.mixing: Tensor
        limits = [m.max_len for m in members if not m.supports_streaming and m.max_len is not None]
        self.supports_streaming = not limits
        lengths = [m.max_len for m in members]
        unbounded = None in lengths
        self.max_len = min(limits) if limits else None if unbounded else max(n or 1 for n in lengths)

    @property
    def members(self) -> list[LanguageModel]:
        return [cast(LanguageModel, part) for part in self.parts]

    @property
    def weights(self) -> Tensor:
        weights = self.mixing.cpu().double()
        return weights / weights.sum()

    def init_state(self, batch_size: int, capacity: int) -> State:
        """The members' states, concatenated."""
        return tuple(part for m in self.members for part in m.init_state(batch_size, capacity))

    def forward(
        self, tokens_BT: Tensor, state: State | None = None, valid_BT: Tensor | None = None
    ) -> tuple[Tensor, State | None]:
        """Log-probabilities of the mixture."""
        weighted: list[Tensor] = []
        new_state: list[Tensor] = []
        for member, weight, n in zip(self.members, self.mixing, self._n_state_tensors, strict=True):
            member_state = None if state is None else state[len(new_state) : len(new_state) + n]
            logits, next_state = member(tokens_BT, member_state, valid_BT)
            weighted.append(torch.log_softmax(logits.float(), dim=-1) + weight.log())
            new_state.extend(next_state or ())
        logits = torch.logsumexp(torch.stack(weighted), dim=0)
        return logits, None if state is None else tuple(new_state)

    def n_parameters(self) -> int:
        """The members' parameters and one weight per member."""
        return sum(m.n_parameters() for m in self.members) + len(self.parts)
