"""What every command line shares: errors in one line, a trace with ``--debug``, exit codes.

Exit codes: 0 done, 2 a mistake that the message says how to mend, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import typer

from llm2vec.errors import LLM2VecError

INTERRUPTED = 130
_UsageError = typer.BadParameter.__base__  # of every mistake in an option; typer has no name for it


def run(main: Callable[..., None] | typer.Typer) -> None:
    """Run a typer function or application; ``--debug`` anywhere shows the trace of an error."""
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    try:
        code = _as_app(main)(standalone_mode=False)
    except LLM2VecError as error:
        if debug:
            raise
        _complain(f"{error} (--debug shows the trace)")
        sys.exit(error.exit_code)
    except _UsageError as error:
        _complain(f"{error.format_message()} (--help lists the options)")
        sys.exit(error.exit_code)
    if code == INTERRUPTED:  # typer turns Ctrl-C into this
        print("interrupted: finished tasks are kept, the same command goes on", file=sys.stderr)
    sys.exit(code or 0)


def _complain(message: str) -> None:
    words = (word if len(word) < 300 else f"{word[:80]}...{word[-20:]}" for word in message.split())
    print("error:", " ".join(words), file=sys.stderr)


def _as_app(main: Callable[..., None] | typer.Typer) -> typer.Typer:
    if isinstance(main, typer.Typer):
        return main
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    return app
