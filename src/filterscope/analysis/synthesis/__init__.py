"""Feature visualisation by activation maximisation: pictures that excite a channel, and how far to trust them."""

from filterscope.analysis.synthesis.crops import Crops, receptive_field, top_crops
from filterscope.analysis.synthesis.jobs import Job, Progress, run_synthesis_worker, synthesize_all
from filterscope.analysis.synthesis.layer_renderer import Synthesis
from filterscope.analysis.synthesis.objectives import (
    Channel,
    Direction,
    Diversity,
    Logit,
    Neuron,
    Objective,
    Specific,
    Sum,
)
from filterscope.analysis.synthesis.recipe import Recipe
from filterscope.analysis.synthesis.synthesize import start_from, synthesize
from filterscope.analysis.synthesis.trust import ActivationStatistics, LayerStatistics, measure_statistics, ranks

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
    "measure_statistics",
    "ranks",
    "receptive_field",
    "run_synthesis_worker",
    "start_from",
    "synthesize",
    "synthesize_all",
    "top_crops",
]
