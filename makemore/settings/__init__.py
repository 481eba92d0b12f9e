"""Typed settings of the corpus, of training and of models."""

from makemore.settings.base import Fraction as Fraction
from makemore.settings.base import NonNegative as NonNegative
from makemore.settings.base import Probability as Probability
from makemore.settings.base import Settings as Settings
from makemore.settings.base import Size as Size
from makemore.settings.base import override as override
from makemore.settings.base import parse as parse
from makemore.settings.corpus import CorpusConfig as CorpusConfig
from makemore.settings.model import CorpusStats as CorpusStats
from makemore.settings.model import ModelConfig as ModelConfig
from makemore.settings.model import Recipe as Recipe
from makemore.settings.train import TrainConfig as TrainConfig
