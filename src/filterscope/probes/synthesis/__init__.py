"""Feature visualisation by activation maximisation: pictures that excite a channel, and how far to trust them."""

from filterscope.probes.synthesis.crops import Crops, receptive_field, top_crops
from filterscope.probes.synthesis.objectives import (
    Channel,
    Direction,
    Diversity,
    Logit,
    Neuron,
    Objective,
    Specific,
    Sum,
)
from filterscope.probes.synthesis.recipe import Recipe
from filterscope.probes.synthesis.synthesize import Synthesis, share, start_from, synthesize
from filterscope.probes.synthesis.trust import ActivationStatistics, LayerStatistics, measure_statistics, ranks

__all__ = [
    "ActivationStatistics",
    "Channel",
    "Crops",
    "Direction",
    "Diversity",
    "LayerStatistics",
    "Logit",
    "Neuron",
    "Objective",
    "Recipe",
    "Specific",
    "Sum",
    "Synthesis",
    "measure_statistics",
    "ranks",
    "receptive_field",
    "share",
    "start_from",
    "synthesize",
    "top_crops",
]
