"""The one exception that means: the user asked for something that cannot be."""


class UserError(ValueError):
    """A mistake in config, data, checkpoint or environment, told in one line.

    The message says what was wrong, what was got and what is possible; the scripts print it without a traceback and
    leave with a non-zero exit code. Any other exception is a bug of ours and keeps its traceback.
    """
