"""The visuals by the names that the configs give them, with their knobs as they are when nothing is said."""

from collections.abc import Callable, Iterable, Mapping

from filterscope.errors import UserError, suggestion
from filterscope.visuals.activations import Activations
from filterscope.visuals.examples import Batch
from filterscope.visuals.figures import Figures
from filterscope.visuals.filters import Filters
from filterscope.visuals.gradcam import GradCAM
from filterscope.visuals.health.health import Health
from filterscope.visuals.history import History
from filterscope.visuals.movies import Movies
from filterscope.visuals.predictions import Predictions
from filterscope.visuals.responses import Responses
from filterscope.visuals.summary import Layers
from filterscope.visuals.synthesis import Synthesis
from filterscope.visuals.timeline import Timeline
from filterscope.visuals.visual import Visual

BY_NAME: Mapping[str, Callable[[], Visual]] = {
    "filters": Filters,
    "activations": Activations,
    "synthesis": Synthesis,
    "responses": Responses,
    "predictions": Predictions,
    "health": Health,
    "timeline": Timeline,
    "history": History,
    "movies": Movies,
    "figures": Figures,
    "examples": Batch,
    "gradcam": GradCAM,
    "summary": Layers,
}


def resolve_visuals(asked: Iterable[str | Visual] | Mapping[str, Visual]) -> dict[str, Visual]:
    """Return visuals by name; those asked for by name have their default knobs.

    Raises:
        UserError: a name that none has; the message names the nearest one.
    """
    if isinstance(asked, Mapping):
        return dict(asked)
    if isinstance(asked, str):
        asked = [asked]
    found: dict[str, Visual] = {}
    for each in asked:
        if not isinstance(each, str):
            found[f"{type(each).__name__} {len(found)}"] = each
        elif each in BY_NAME:
            found[each] = BY_NAME[each]()
        else:
            raise UserError(f"unknown visual {each!r}{suggestion(each, BY_NAME)}; possible are {', '.join(BY_NAME)}")
    return found
