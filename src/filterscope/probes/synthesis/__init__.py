"""Feature visualisation by activation maximisation: pictures that excite a channel, and how far to trust them."""

from filterscope.probes.synthesis.crops import Crops, receptive_field, top_crops
from filterscope.probes.synthesis.jobs import Job, Progress, assist, synthesize_all
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
from filterscope.probes.synthesis.synthesize import start_from, synthesize
from filterscope.probes.synthesis.trust import ActivationStatistics, LayerStatistics, measure_statistics, ranks
from filterscope.probes.synthesis.workbench import Synthesis

__all__ = [
    "ActivationStatistics",
    "Channel",
    "Crops",
    "Direction",
    "Diversity",
    "Job",
    "LayerStatistics",
    "Logit",
    "Neuron",
    "Objective",
    "Progress",
    "Recipe",
    "Specific",
    "Sum",
    "Synthesis",
    "assist",
    "measure_statistics",
    "ranks",
    "receptive_field",
    "start_from",
    "synthesize",
    "synthesize_all",
    "top_crops",
]
