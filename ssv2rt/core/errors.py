"""Errors that are shown to the user as one line; any other exception that reaches the terminal is a bug."""


class UserError(ValueError):
    """The request was well formed and could not be carried out. The command ends with exit code 1.

    The message is one line: what was wrong, the value, what is allowed, what to do.
    """

    exit_code = 1
    prefix = "Error: "
    """How the line begins."""


class UsageError(UserError):
    """What was typed, or written in a recipe, is not something that can be asked for. Exit code 2."""

    exit_code = 2


def suggest(word: str, allowed: list[str]) -> str:
    """What follows `no such thing 'word'`: the closest of the entries allowed, and all of them."""
    close = nearest(word, allowed)
    return f"{close} There are: {', '.join(allowed)}" if close else f"; there are: {', '.join(allowed) or 'none'}"


def nearest(word: str, allowed: list[str]) -> str:
    """`; did you mean 'x'?` for the entry of `allowed` that is closest to `word`, or an empty string."""
    import difflib

    match = difflib.get_close_matches(word, allowed, n=1, cutoff=0.5)
    return f"; did you mean '{match[0]}'?" if match else ""
