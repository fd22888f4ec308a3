"""Errors that are shown to the user as one line. Any other exception that reaches the terminal is a bug."""

import contextlib
from collections.abc import Iterator


class UserError(ValueError):
    """The request was valid but could not be carried out. The command ends with exit code 1.

    The message is one line that says what is wrong, with the value, what is allowed, and what to do.
    """

    exit_code = 1
    prefix = "Error: "
    """Text before the message in the terminal."""


class UsageError(UserError):
    """An option or a recipe setting is invalid. The command ends with exit code 2."""

    exit_code = 2


@contextlib.contextmanager
def os_errors_as_user_errors(what: str) -> Iterator[None]:
    """Turns an `OSError` in the block (a full disk, no permission, too many open files) into a one-line `UserError`.

    Args:
        what: what could not be done, and where: "cannot build an engine in 'runs/demo/engines'".
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{what}: {error.strerror or error}; mend that, or take another folder") from None


MORE_MEMORY = "see what `ulimit -v` and the memory of this machine or container allow"
"""What to do if memory runs out."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error tells that memory ran out: an allocation failed, or a library could not be loaded for lack of it."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or "failed to map segment" in said or "cannot allocate memory" in said


def suggest(word: str, allowed: list[str]) -> str:
    """Text to append to a message like `no model 'word'`: the closest allowed word, if any, and the list of all."""
    close = nearest(word, allowed)
    return f"{close} There are: {', '.join(allowed)}" if close else f"; there are: {', '.join(allowed) or 'none'}"


def nearest(word: str, allowed: list[str]) -> str:
    """`; did you mean 'x'?` with the word of `allowed` that is closest to `word`, or "" if none is close."""
    import difflib

    match = difflib.get_close_matches(word, allowed, n=1, cutoff=0.5)
    return f"; did you mean '{match[0]}'?" if match else ""
