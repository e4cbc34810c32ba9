"""`UserError`, the exception for a user's mistake, and functions that make messages and names fit to be shown."""

import difflib
import logging
import re
from collections.abc import Iterable, Mapping


class UserError(ValueError):
    """A mistake in config, data, checkpoint or environment.

    The message is one line: what was wrong, what was given, what is possible. The scripts print it without a traceback
    and exit with a non-zero code. Any other exception is a fault of filterscope.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(message, longest=2000))


class PrintableFormatter(logging.Formatter):
    """Formats log records so that the names in them cannot move the terminal's cursor or change its colours."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's text; its lines stay lines."""
        return "\n".join(printable(line, longest=100_000) for line in super().format(record).split("\n"))


def printable(text: object, longest: int = 200) -> str:
    r"""Return a text in one line of characters that a terminal, a picture and a file in UTF-8 can show.

    Line breaks become spaces, other control characters are written as `\x1b`, bytes of a file's name that are not UTF-8
    are read as Latin-1, and the middle of a long text is replaced by `…`.

    Args:
        text: such as the name of a file or a class.
        longest: how many characters are kept.
    """
    short = str(text)
    if len(short) > longest:
        short = f"{short[: longest // 2]}…{short[len(short) - (longest - 1) // 2 :]}"
    if short.isprintable():
        return short
    latin = re.sub("[\udc80-\udcff]", lambda found: chr(ord(found[0]) - 0xDC00), short)
    return "".join(map(_shown, latin))


def _shown(character: str) -> str:
    if character.isspace():
        return " "
    joins_letters = character in "\u200c\u200d"
    return character if character.isprintable() or joins_letters else character.encode("unicode_escape").decode()


def as_written(value: object) -> str:
    """Return an option's value as it is written in YAML and on the command line: `null`, `true`, `[a, b]`, `{a: 1}`."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {as_written(each)}' for key, each in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(as_written, value))}]"
    return repr(value)


def suggestion(name: object, known: Iterable[object]) -> str:
    """Return ` (did you mean …?)` with the known name closest to an unknown one, or an empty string."""
    by_text = {str(each).lower(): each for each in known}
    near = difflib.get_close_matches(str(name).lower(), by_text, n=1)
    return f" (did you mean {by_text[near[0]]}?)" if near else ""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message that is not empty, or the error's type."""
    text = f"KeyError: {error}" if isinstance(error, KeyError) else str(error)
    if isinstance(error, OSError) and error.strerror and not error.filename:
        text = error.strerror
    return next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
