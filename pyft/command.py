"""What every `python -m pyft.<command>` does around its own work: options, errors, exit codes.

    import argparse, sys
    from pyft.command import run_command

    def main(options: argparse.Namespace) -> int | None: ...

    if __name__ == "__main__":
        sys.exit(run_command(main, parser))

A mistake becomes one line `error: what (where): how to fix it` on stderr and the exit code of its kind; a
traceback is printed with `--debug` only. torch is never imported here.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import traceback
import unicodedata
from collections.abc import Callable, Sequence

from pyft.cpus import let_waiting_threads_sleep
from pyft.disk import is_disk_error
from pyft.errors import ConfigError, DiskError, PyftError, first_line, out_of_memory

Main = Callable[[argparse.Namespace], int | None]

BROKEN_PIPE_CODE = 141


def run_command(main: Main, parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> int:
    """Parse the command line, run a command, and turn whatever it raises into error lines and an exit code.

    Args:
        main: the command; it gets the parsed options and returns its exit code, None meaning 0.
        parser: its options; `--debug` is added.
        argv: the arguments, by default those of the process.

    Returns:
        The exit code, for `sys.exit`.
    """
    _prepare_streams()
    let_waiting_threads_sleep()
    parser.add_argument("--debug", action="store_true", help="print a traceback with every error")
    parser.error = _refuse_usage  # type: ignore[method-assign]
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        code = main(_find_recipe(parser.parse_intermixed_args(arguments))) or 0
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except SystemExit as stop:  # argparse's --help
        return stop.code if isinstance(stop.code, int) else 0
    except BrokenPipeError:
        _silence_stdout()
        return BROKEN_PIPE_CODE
    except KeyboardInterrupt:
        _report([], debug)
        return 130
    except Exception as error:
        known = error if isinstance(error, PyftError) else _known_error(error)
        if known is None:
            message = f"internal: {type(error).__name__}: {error}"
            _report([message if debug else f"{message}; run again with --debug"], debug)
            return 1
        _report(known.messages, debug)
        return known.exit_code


def _find_recipe(options: argparse.Namespace) -> argparse.Namespace:
    """Let overrides stand before the recipe too: argparse takes the first word for it, whatever it is."""
    words = [getattr(options, "recipe", None), *getattr(options, "overrides", [])]
    if words[0] is not None and _is_override(words[0]):
        found = next((place for place, word in enumerate(words) if not _is_override(word)), 0)
        options.recipe = words.pop(found)
        options.overrides = words
    return options


def _is_override(word: str) -> bool:
    return "=" in word and not os.path.exists(word)


def _refuse_usage(message: str) -> None:
    dashed = message.startswith("unrecognized arguments: -") and "=" in message and "." in message
    fix = "write overrides without dashes, as train.learning_rate=1e-4" if dashed else "see --help"
    raise ConfigError(f"{message} (command line): {fix}")


def _known_error(error: Exception) -> PyftError | None:
    """Give the error of pyft that stands for one of Python's, torch's or the system's."""
    if found := out_of_memory(error, "device"):
        return found
    if not is_disk_error(error):
        return None
    is_system = isinstance(error, OSError) and error.strerror
    what = error.strerror if is_system else first_line(error)
    place = (is_system and (error.filename2 or error.filename)) or "output folder"
    return DiskError(f"{what} ({place}): free some space, fix the permissions or write elsewhere")


def _report(messages: list[str], debug: bool) -> None:
    if debug:
        traceback.print_exc()
    for message in messages:
        print(f"error: {_one_line(message)}", file=sys.stderr, flush=True)


def _one_line(message: str) -> str:
    """Keep a message on one line and harmless for a terminal, whatever text from files it holds."""
    spaced = " ".join(message.split("\n"))
    return "".join(
        repr(char)[1:-1] if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") else char
        for char in spaced
    )


def _prepare_streams() -> None:
    """Write line by line, and spell out characters that the terminal cannot show."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True, errors="backslashreplace")


def _silence_stdout() -> None:
    """Keep Python from complaining again at exit about a reader that went away."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError, AttributeError):
        sys.stdout = None
