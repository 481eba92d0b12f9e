"""A language model of makemore, for Hugging Face's transformers.

``input_ids`` begin with the boundary, which the tokenizer puts there. Where a boundary hides what is before
it, shorter rows of a batch may be padded on the left, as the tokenizer does; other models refuse padded rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

CANT_PAD = "this model can't read padded rows; give rows of the same length"


class MakemoreConfig(PretrainedConfig):
    """Settings of the model, under their names in makemore."""

    model_type = "makemore"

    def __init__(
        self,
        vocab_size: int = 2,
        settings: dict[str, Any] | None = None,
        document_ends: str = "anywhere",
        **kwargs: Any,
    ) -> None:
        self.vocab_size, self.settings, self.document_ends = vocab_size, settings or {}, document_ends
        super().__init__(**kwargs)


class DecodingState:
    """What a model needs to know of the tokens so far, as ``past_key_values``. A full context is halved."""

    def __init__(self, model: Any, rows: int) -> None:
        self.model = model
        self.limit: int | None = None if model.supports_streaming else model.max_len
        self.rows = rows
        self.recent_BT = torch.empty(rows, 0, dtype=torch.int64, device=model.device)
        self._reset()

    def _reset(self) -> None:
        self.tensors = self.model.init_state(self.rows, self.limit or 1)
        self.used = 0

    def read(self, tokens_BT: Tensor) -> Tensor:
        """Logits after each token; of a longer text than the context, only its end is read."""
        if self.limit is None:
            return self._feed(tokens_BT)
        tokens_BT = tokens_BT[:, -self.limit :]
        self.recent_BT = torch.cat([self.recent_BT, tokens_BT], dim=1)[:, -self.limit :]
        if self.used + tokens_BT.shape[1] <= self.limit:
            return self._feed(tokens_BT)
        half = self.limit // 2
        if tokens_BT.shape[1] == 1 and (rolled := self.model.drop_oldest(self.tensors, half)) is not None:
            self.tensors, self.used = rolled, half
            return self._feed(tokens_BT)
        self._reset()
        return self._feed(self.recent_BT[:, -max(half, tokens_BT.shape[1], 1) :])[:, -tokens_BT.shape[1] :]

    def _feed(self, tokens_BT: Tensor) -> Tensor:
        logits_BTV, self.tensors = self.model(tokens_BT, self.tensors)
        self.used += tokens_BT.shape[1]
        return logits_BTV

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of tokens in the context."""
        return self.used

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Select rows, as beam search does."""
        self.tensors = tuple(part[beam_idx] for part in self.tensors)
        self.recent_BT = self.recent_BT[beam_idx]


class MakemoreForCausalLM(PreTrainedModel, GenerationMixin):
    """Predicts the next token."""

    config_class = MakemoreConfig
    base_model_prefix = "model"
    _is_stateful = True

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def __init__(self, config: MakemoreConfig) -> None:
        super().__init__(config)
        self.model = make_model(config)
        for module in self.model.modules():
            module._non_persistent_buffers_set.clear()  # stored, too: loading doesn't compute them
        self.post_init()

    def _init_weights(self, module: Any) -> None:
        """The model initialises itself."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: DecodingState | None = None,
        use_cache: bool | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Predict the token after each of ``input_ids``.

        Args:
            input_ids: (B, T) int64; with ``past_key_values``, the tokens that follow those already read.
            attention_mask: (B, T), 0 for padding on the left.
            use_cache: whether to return the state after these tokens, too.
            labels: (B, T) int64, usually ``input_ids``; -100 is ignored.

        Returns:
            ``logits`` (B, T, V), ``loss`` in nats per token if there are labels, and the state.

        Raises:
            ValueError: there is padding, and a boundary doesn't hide it from this model.
        """
        if attention_mask is not None and not attention_mask.all() and not self.model.supports_packing:
            raise ValueError(CANT_PAD)
        if use_cache or past_key_values is not None:
            past_key_values = past_key_values or DecodingState(self.model, len(input_ids))
            logits_BTV = past_key_values.read(input_ids)
        else:
            logits_BTV = self.model(input_ids)[0]
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits_BTV,
            past_key_values=past_key_values,  # type: ignore[arg-type]
        )

    def prepare_inputs_for_generation(  # type: ignore[override]
        self,
        input_ids: Tensor,
        past_key_values: DecodingState | None = None,
        use_cache: bool | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """All tokens at first, then only the newest; without a cache, the last ones of the context.

        Raises:
            ValueError: rows are padded, and a boundary doesn't hide the padding.
        """
        if attention_mask is not None and past_key_values is None:
            self._check_padding(input_ids, attention_mask)
        if past_key_values is not None:
            input_ids = input_ids[:, -1:]
        elif self.model.max_len is not None and not use_cache:
            input_ids = input_ids[:, -self.model.max_len :]
        return {"input_ids": input_ids, "past_key_values": past_key_values, "use_cache": use_cache}

    def _check_padding(self, input_ids: Tensor, attention_mask: Tensor) -> None:
        """Raise ValueError unless all padding is before a boundary, which hides it from the model."""
        is_padding = attention_mask == 0
        if not is_padding.any():
            return
        if not self.model.supports_packing:
            raise ValueError(CANT_PAD)
        if (is_padding[:, 1:] & ~is_padding[:, :-1]).any() or is_padding[:, -1].any():
            raise ValueError("rows must be padded on the left; set tokenizer.padding_side = 'left'")
        is_first = is_padding[:, :-1] & ~is_padding[:, 1:]
        if (input_ids[:, 1:][is_first] != self.model.boundary_id).any():
            raise ValueError("padded rows must begin with the boundary, which the tokenizer puts there")


def make_model(config: MakemoreConfig) -> Any:
    """The model itself; in an export, another function of this name follows the model's code."""
    raise NotImplementedError
