"""The one exception that means: the user asked for something that cannot be."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in config, data, checkpoint or environment, told in one line.

    The message says what was wrong, what was got and what is possible; the scripts print it without a traceback and
    leave with a non-zero exit code. Any other exception is a bug of ours and keeps its traceback.
    """


def suggestion(name: object, known: Iterable[object]) -> str:
    """Return ` (did you mean …?)` with the known name that is most like one that is none, or nothing."""
    by_text = {str(each).lower(): each for each in known}
    near = difflib.get_close_matches(str(name).lower(), by_text, n=1)
    return f" (did you mean {by_text[near[0]]}?)" if near else ""
