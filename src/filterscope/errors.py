"""`UserError`, the exception for a user's mistake, and two functions that word messages."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in config, data, checkpoint or environment.

    The message is one line: what was wrong, what was given, what is possible. The scripts print it without a traceback
    and exit with a non-zero code. Any other exception is a bug of filterscope and keeps its traceback.
    """


def suggestion(name: object, known: Iterable[object]) -> str:
    """Return ` (did you mean …?)` with the known name closest to an unknown one, or an empty string."""
    by_text = {str(each).lower(): each for each in known}
    near = difflib.get_close_matches(str(name).lower(), by_text, n=1)
    return f" (did you mean {by_text[near[0]]}?)" if near else ""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message that is not empty, or the error's type."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
