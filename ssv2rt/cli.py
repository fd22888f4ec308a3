"""The `ssv2rt` command."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
from importlib.machinery import ExtensionFileLoader
from types import FrameType
from typing import Any

import click

from ssv2rt import __version__
from ssv2rt.commands.benchmark import benchmark
from ssv2rt.commands.build_engine import build_engine
from ssv2rt.commands.card import card
from ssv2rt.commands.compare import compare
from ssv2rt.commands.doctor import doctor
from ssv2rt.commands.evaluate import evaluate
from ssv2rt.commands.export import export
from ssv2rt.commands.import_weights import import_weights
from ssv2rt.commands.index import index
from ssv2rt.commands.inspect import inspect
from ssv2rt.commands.merge import merge
from ssv2rt.commands.models import models
from ssv2rt.commands.output import discard_stdout
from ssv2rt.commands.preview import preview
from ssv2rt.commands.recipes import recipes
from ssv2rt.commands.repack import repack
from ssv2rt.commands.report import report
from ssv2rt.commands.runs import runs
from ssv2rt.commands.score import score
from ssv2rt.commands.synthesize import synthesize
from ssv2rt.commands.train import train
from ssv2rt.core.errors import MORE_MEMORY, UserError, says_out_of_memory
from ssv2rt.core.log import log_to_stderr, printable


class _InOrder(click.Group):
    """Lists commands in the order in which they were added. An output that nobody reads any more (`| head`) is no error."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            discard_stdout()


@click.group(cls=_InOrder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="ssv2rt")
def app() -> None:
    """Train 3D-convolution action models on Something-Something V2 or on your own videos, and score videos with them."""


def _set_level(ctx: click.Context, option: click.Parameter, given: bool) -> None:
    if given:
        log_to_stderr(logging.DEBUG if option.name == "verbose" else logging.WARNING)


def _add_levels(command: click.Command) -> None:
    """Adds -v and -q to a command and its subcommands."""
    for name, text in (("verbose", "Log more."), ("quiet", "Log only warnings and errors; no progress.")):
        words = [f"-{name[0]}", f"--{name}"]
        command.params.append(click.Option(words, is_flag=True, expose_value=False, callback=_set_level, help=text))
    if isinstance(command, click.Group):
        for below in command.commands.values():
            _add_levels(below)


for command in (
    train,
    evaluate,
    compare,
    import_weights,
    build_engine,
    inspect,
    card,
    score,
    merge,
    export,
    index,
    repack,
    preview,
    report,
    benchmark,
    synthesize,
    doctor,
    runs,
    recipes,
    models,
):
    app.add_command(command)
_add_levels(app)


def main() -> None:
    """Runs the command. An error of the user is one line, and the exit code tells its kind."""
    _open_standard_files()
    log_to_stderr()
    try:
        os.getcwd()
    except OSError as error:  # PyTorch's libraries end the process where there is none
        _fail(f"Error: the working directory has been deleted ({error.strerror}); change to a folder that exists", 1)
    signal.signal(signal.SIGTERM, _terminate)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell lets its background jobs ignore it
        signal.signal(signal.SIGINT, _interrupt)
    try:
        app(standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Abort:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message())
    except click.ClickException as error:
        _fail(f"Error: {' '.join(error.format_message().split())}", error.exit_code)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except UserError as error:
        if error.silent:
            sys.exit(error.exit_code)
        _fail(f"{error.prefix}{error}", error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except (MemoryError, RuntimeError, ImportError, OSError) as error:
        if says_out_of_memory(error):
            _fail(f"Error: out of memory ({str(error)[:150] or type(error).__name__}); {MORE_MEMORY}", 1)
        if isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.ELOOP) and error.filename:
            _fail(f"Error: '{os.fsdecode(error.filename)}': {error.strerror}; give another path", 1)
        if not isinstance(error, OSError) or error.filename or error.errno not in (errno.ENOSPC, errno.EIO):
            raise
        discard_stdout()
        _fail(f"Error: cannot write to stdout: {error.strerror}; files that the command has written are complete", 1)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Python, which is ending, would print a traceback


def _open_standard_files() -> None:
    """Opens /dev/null as stdin, stdout or stderr if it is closed. Otherwise, the next opened file would take its number."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            if (opened := os.open(os.devnull, os.O_RDWR)) != number:
                os.dup2(opened, number)
                os.close(opened)
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


def _fail(message: str, code: int) -> None:
    """Prints an error as one line, even if a file name or message in it has line breaks, and exits."""
    print(printable(message), file=sys.stderr)
    sys.exit(code)


def _terminate(number: int, frame: FrameType | None) -> None:
    """Ends the command on SIGTERM like an exception, so that temporary files are removed."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends it at once
    print("terminated", file=sys.stderr)
    if _loads_extension(frame):
        os._exit(128 + number)
    sys.exit(128 + number)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Ends the command on SIGINT as Python does, except while a library is loaded."""
    if _loads_extension(frame):
        print("interrupted", file=sys.stderr)
        os._exit(128 + number)
    signal.default_int_handler(number, frame)


def _loads_extension(frame: FrameType | None) -> bool:
    """Whether an extension module is being imported. Those of pybind11 abort the process on an exception."""
    while frame and not isinstance(frame.f_locals.get("self"), ExtensionFileLoader):
        frame = frame.f_back
    return frame is not None
