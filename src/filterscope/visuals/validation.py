"""Visuals that watch a validation pass that runs anyway, instead of running one of their own."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

from torch import Tensor

from filterscope.models.classifier import Classifier
from filterscope.visuals.visual import Visual, VisualState, is_due


@contextmanager
def recording_validation(
    visuals: Mapping[str, Visual], classifier: Classifier, state: VisualState
) -> Iterator[Callable[[Tensor | None], None]]:
    """Let the visuals whose turn it is in `past.epoch` watch while somebody else runs the network.

    Yields a function to be called after every batch with its labels. At the end of the block what was watched lies in
    `past.gathered`, summed over all processes of a distributed run, of which each must come here; after an exception
    nothing does.
    """
    with ExitStack() as stack:
        takers = [
            stack.enter_context(visual.record_validation(classifier, state))
            for visual in visuals.values()
            if hasattr(visual, "record_validation") and is_due(visual, state)
        ]

        def take(labels: Tensor | None) -> None:
            for taker in takers:
                taker(labels)

        yield take
