"""Errors that are shown to the user as one line. Any other exception that reaches the terminal is a bug."""

import contextlib
import errno
from collections.abc import Iterator


class UserError(ValueError):
    """The request was valid but could not be carried out. The command ends with exit code 1.

    The message is one line that says what is wrong, with the value, what is allowed, and what to do.
    """

    exit_code = 1
    prefix = "Error: "
    """Text before the message in the terminal."""
    silent = False
    """Whether another process says it: of processes that train together, one on each machine says what all know."""


class UsageError(UserError):
    """An option or a recipe setting is invalid. The command ends with exit code 2."""

    exit_code = 2


@contextlib.contextmanager
def os_errors_as_user_errors(what: str, fix: str = "mend that, or take another folder") -> Iterator[None]:
    """Turns an `OSError` in the block (a full disk, no permission, too many open files) into a one-line `UserError`.

    Args:
        what: what could not be done, and where: "cannot build an engine in 'runs/demo/engines'".
        fix: what to do.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{what}: {error.strerror or error}; {fix}") from None


@contextlib.contextmanager
def out_of_memory_as_user_error(what: str, fix: str) -> Iterator[None]:
    """Turns an error that says that memory ran out into a one-line `UserError`.

    Args:
        what: what could not be done: "training with batches of 8 clips".
        fix: what to do.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not says_out_of_memory(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{what}: out of memory ({reason:.150}); {fix}") from None


def says_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python, PyTorch or the loader of shared libraries says that memory ran out."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    text = str(error)
    return isinstance(error, (RuntimeError, ImportError, OSError)) and any(part in text for part in _OUT_OF_MEMORY)


_OUT_OF_MEMORY = (
    "out of memory",  # CUDA; the class torch.OutOfMemoryError is a RuntimeError
    "ALLOC_FAILED",  # cuDNN, cuBLAS
    "not enough memory",  # PyTorch's allocator on CPUs: "DefaultCPUAllocator: not enough memory"
    "can't allocate memory",  # the same on Linux
    "could not create a memory object",  # oneDNN
    "bad_alloc",  # C++
    "Cannot allocate memory",  # a shared library that does not fit below `ulimit -v`
    "failed to map segment from shared object",
    "can't start new thread",  # no room for its stack
)


def one_line(error: BaseException) -> str:
    """The first line of an error's message, shortened, with the second if the first announces it; or the name of its class."""
    problems = getattr(error, "errors", None)  # pydantic's: the first with its place
    if callable(problems) and (found := problems()):
        text = f"{'.'.join(map(str, found[0]['loc']))}: {found[0]['msg']}".removeprefix(": ")
    else:
        text = str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])[:150]


MORE_MEMORY = "see what `ulimit -v` and the memory of this machine or container allow"
"""What to do if memory runs out."""


def suggest(word: str, allowed: list[str]) -> str:
    """Text to append to a message like `no model 'word'`: the closest allowed word, if any, and the list of all."""
    close = nearest(word, allowed)
    return f"{close} There are: {', '.join(allowed)}" if close else f"; there are: {', '.join(allowed) or 'none'}"


def nearest(word: str, allowed: list[str]) -> str:
    """`; did you mean 'x'?` with the word of `allowed` that is closest to `word`, or "" if none is close."""
    import difflib

    match = difflib.get_close_matches(word, allowed, n=1, cutoff=0.5)
    return f"; did you mean '{match[0]}'?" if match else ""
