"""What every command line shares: errors in one line, a trace with ``--debug``, exit codes.

Exit codes: 0 done, 1 whoever read standard output stopped, or something failed that may succeed
when tried again, 2 a mistake that the message says how to mend, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import typer

from llm2vec.errors import LLM2VecError, SettingError

INTERRUPTED = 130
LONGEST = 4096  # characters of an argument; no system has a longer path
_UsageError = typer.BadParameter.__base__  # of every mistake in an option; typer has no name for it


def run(main: Callable[..., None] | typer.Typer) -> None:
    """Run a typer function or application; ``--debug`` anywhere shows the trace of an error."""
    try:
        try:
            _run(main)
        finally:
            sys.stdout.flush()  # else a reader that is gone shows when Python has almost ended
    except BrokenPipeError:  # whoever read standard output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _run(main: Callable[..., None] | typer.Typer) -> None:
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    try:
        _refuse_endless(sys.argv[1:])
        code = _as_app(main)(standalone_mode=False)
    except LLM2VecError as error:
        if debug:
            raise
        _complain(f"{error} (--debug shows the trace)")
        sys.exit(error.exit_code)
    except _UsageError as error:
        _complain(f"{error.format_message()} (--help lists the options)")
        sys.exit(error.exit_code)
    except OSError as error:
        if debug or not _is_of_the_user(error.filename, sys.argv[1:]):
            raise
        _complain(
            f"{error.filename}: {error.strerror}; give another path (--debug shows the trace)"
        )
        sys.exit(LLM2VecError.exit_code)
    if code == INTERRUPTED:  # typer turns Ctrl-C into this
        print("interrupted: finished tasks are kept, the same command goes on", file=sys.stderr)
    sys.exit(code or 0)


def _refuse_endless(arguments: list[str]) -> None:
    """Before anything is fetched or written: no name, path or instruction is that long."""
    for argument in arguments:
        if len(argument) > LONGEST:
            raise SettingError(
                f"{argument[:60]}...: an argument of {len(argument)} characters; at most {LONGEST}"
            )


def _is_of_the_user(path: object, arguments: list[str]) -> bool:
    """Whether a path is one of the arguments, or lies below it."""
    values = [argument.partition("=")[2] or argument for argument in arguments]
    own = [start for value in values if value for start in (value, os.path.abspath(value))]
    return isinstance(path, str | os.PathLike) and os.fspath(path).startswith(tuple(own))


def _complain(message: str) -> None:
    words = (word if len(word) < 300 else f"{word[:80]}...{word[-20:]}" for word in message.split())
    print("error:", " ".join(words), file=sys.stderr)


def _as_app(main: Callable[..., None] | typer.Typer) -> typer.Typer:
    if isinstance(main, typer.Typer):
        return main
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    return app
