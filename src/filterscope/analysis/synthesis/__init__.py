"""Feature visualization by activation maximization: pictures that activate a channel, and how far to trust them."""

from filterscope.analysis.synthesis.distributed import Progress, run_synthesis_worker, synthesize, synthesize_all
from filterscope.analysis.synthesis.jobs import Job, SynthesisResult
from filterscope.analysis.synthesis.objectives import LayerResponse, Objective, compares_samples, objective
from filterscope.analysis.synthesis.recipe import Recipe
from filterscope.analysis.synthesis.renderer import start_from
from filterscope.analysis.synthesis.trust import ActivationStatistics, LayerStatistics, measure_statistics, ranks

__all__ = [
    "ActivationStatistics",
    "Job",
    "LayerResponse",
    "LayerStatistics",
    "Objective",
    "Progress",
    "Recipe",
    "SynthesisResult",
    "compares_samples",
    "measure_statistics",
    "objective",
    "ranks",
    "run_synthesis_worker",
    "start_from",
    "synthesize",
    "synthesize_all",
]
