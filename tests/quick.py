"""A recipe that makes feature visualizations in a fraction of a second."""

from filterscope.analysis.synthesis import Recipe


def quick(**options):
    return Recipe(
        **{"size": 32, "steps": 8, "precision": "fp32", "jitter": 2.0, "objective": "channel", "learning_rate": 0.05}
        | options
    )
