"""What every command line shares: errors in one line, a trace with ``--debug``, exit codes.

Exit codes: 0 done, 2 a mistake that the message says how to mend, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import typer

from llm2vec.errors import LLM2VecError

INTERRUPTED = 130


def run(main: Callable[..., None] | typer.Typer) -> None:
    """Run a typer function or application; ``--debug`` anywhere shows the trace of an error."""
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    try:
        _as_app(main)()
    except LLM2VecError as error:
        if debug:
            raise
        message = " ".join(str(error).split())
        print(f"error: {message} (--debug shows the trace)", file=sys.stderr)
        sys.exit(error.exit_code)
    except SystemExit as stop:
        if stop.code == INTERRUPTED:  # typer turns Ctrl-C into this
            print("interrupted: finished tasks are kept, the same command goes on", file=sys.stderr)
        raise


def _as_app(main: Callable[..., None] | typer.Typer) -> typer.Typer:
    if isinstance(main, typer.Typer):
        return main
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    return app
