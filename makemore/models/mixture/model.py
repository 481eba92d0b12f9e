"""A mixture of models: by constant weights, linear interpolation of their probabilities (Jelinek & Mercer
1980, "Interpolated estimation of Markov source parameters from sparse data"); or by a gate."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from pydantic import BeforeValidator, Field, SerializeAsAny
from torch import Tensor, nn

from makemore.models.base import LanguageModel, MixtureModel
from makemore.models.mixture.gate import UNITS, Gate
from makemore.runtime.untrusted import parse_json
from makemore.settings import ModelConfig
from makemore.settings.base import NonNegativeInt
from makemore.types import DocumentEnds, State

N_GATES = 3
"""The gates that score other texts, the first half of val, and its second half."""


def _member_configs(members: Any) -> Any:
    # Imported here to avoid a cycle: the registry imports this file.
    from makemore.models.catalogue import parse_model_config

    try:
        if isinstance(members, str):  # runs of earlier versions
            members = [{"name": name, **settings} for name, settings in parse_json(members)]
        return tuple(map(parse_model_config, members))
    except (TypeError, AttributeError):
        raise ValueError("must be a list of models' settings") from None


class MembersConfig(ModelConfig):
    """Settings of mixtures."""

    members: Annotated[
        tuple[SerializeAsAny[ModelConfig], ...], BeforeValidator(_member_configs), Field(min_length=1)
    ] = Field(
        default_factory=lambda: _member_configs([{"name": "mlp"}, {"name": "bigram"}]),
        description="settings of the member models",
    )
    gate: NonNegativeInt = Field(
        0, description="units of the gate that weighs the members at each token (0: constant weights)"
    )


class MixtureConfig(MembersConfig):
    """Settings of ``mixture``."""

    name: Literal["mixture"] = "mixture"


class AutoConfig(MembersConfig):
    """Settings of ``auto``; training chooses them."""

    name: Literal["auto"] = "auto"
    gate: NonNegativeInt = Field(UNITS, description="units of the gate that weighs the members at each token")


class Mixture(MixtureModel):
    """``log sum_k w_k p_k``: on any token at most -ln w_k nats worse than member k. Or, with a gate, a
    weighted product.

    There are three gates, all fitted on val: one to score other texts, and two fitted on a half each, to
    score the other half.
    """

    Config: ClassVar[type[MembersConfig]] = MixtureConfig
    summary = "trained runs combined by a gate or by constant weights, made by makemore mix"

    def __init__(self, config: MembersConfig, vocab_size: int, boundary_id: int) -> None:
        super().__init__(config, vocab_size, boundary_id)
        # Imported here to avoid a cycle: the registry imports this file.
        from makemore.models import MODELS

        members = [MODELS.get(c.name)(c, vocab_size, boundary_id) for c in config.members]
        self.set_members(members)
        # float32, because MPS has no float64.
        self.register_buffer("mixing", torch.full((len(members),), 1 / len(members)))
        self.mixing: Tensor
        n_gates = N_GATES if config.gate else 0
        self.gates = nn.ModuleList(Gate(len(members), config.gate) for _ in range(n_gates))

    def set_document_ends(self, document_ends: DocumentEnds) -> None:
        super().set_document_ends(document_ends)
        for member in self.members:
            member.set_document_ends(document_ends)

    def set_members(self, members: Sequence[LanguageModel]) -> None:
        """Replace the members by as many others."""
        self.parts = nn.ModuleList(members)
        self._n_state_tensors = [len(m.init_state(1, 1)) for m in members]
        limits = [m.max_len for m in members if not m.supports_streaming and m.max_len is not None]
        self.supports_streaming = not limits
        lengths = [m.max_len for m in members]
        unbounded = None in lengths
        self.max_len = min(limits) if limits else None if unbounded else max(n or 1 for n in lengths)

    def with_members(self, members: Sequence[LanguageModel], gate: nn.Module | None = None) -> Mixture:
        mixture = type(self)(self.config, self.vocab_size, self.boundary_id)
        mixture.document_ends = self.document_ends
        mixture.set_members(members)
        mixture.mixing.copy_(self.mixing)
        mixture.gates = copy.deepcopy(self.gates) if gate is None else nn.ModuleList([gate])
        return mixture.to(self.device).eval()

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
        members: list[Tensor] = []
        new_state: list[Tensor] = []
        for member, n in zip(self.members, self._n_state_tensors, strict=True):
            member_state = None if state is None else state[len(new_state) : len(new_state) + n]
            logits, next_state = member(tokens_BT, member_state, valid_BT)
            members.append(torch.log_softmax(logits.float(), dim=-1))
            new_state.extend(next_state or ())
        logits = self.mix(torch.stack(members, dim=-2))
        return logits, None if state is None else tuple(new_state)

    def mix(self, log_probs: Tensor, gate: int = 0) -> Tensor:
        if self.gates:
            return cast(Tensor, self.gates[gate](log_probs))
        return torch.logsumexp(log_probs + self.mixing.log().unsqueeze(-1), dim=-2)

    def n_parameters(self) -> int:
        """The members' parameters, and the gate's or one weight per member."""
        gate = sum(p.numel() for p in self.gates[0].parameters()) if self.gates else len(self.parts)
        return sum(m.n_parameters() for m in self.members) + gate


class Auto(Mixture):
    """A mixture whose members are trained with it, in one run directory."""

    Config = AutoConfig
    summary = "a counting model and a transformer, mixed by a gate (the default)"
    trains_members = True
