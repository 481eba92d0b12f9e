"""Context mixing: predictions of many contexts, mixed by weights that depend on the situation."""

from makemore.models.context_mixing.model import ContextMixing as ContextMixing
from makemore.models.context_mixing.model import ContextMixingConfig as ContextMixingConfig
