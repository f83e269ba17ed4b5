"""What the commands' parsers share: what every one takes, and how errors become a line and an exit code.

Nothing heavy is imported before a command is known to be right.
"""

from __future__ import annotations

import argparse
import os
import select
import shlex
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from pydantic import BaseModel

DONE, FAILED, WRONG, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143


class Parser(argparse.ArgumentParser):
    """Answers a wrong command with one line and exit code 2."""

    def error(self, message: str) -> NoReturn:
        """End the program: ``message``, and where help is."""
        self.exit(WRONG, f"{self.prog}: {message}\nTry: {self.prog} --help\n")


def add_workspace(parser: Parser) -> None:
    """Let a command without a configuration say where its workspace is."""
    here = os.environ.get("CURATE_WORKSPACE") or "workspace"
    parser.add_argument("--workspace", metavar="DIR", default=here, help=f"folder with everything runs keep [{here}]")


def subcommand(prog: str, commands: dict[str, str], tokens: list[str]) -> tuple[str, list[str]]:
    """The one of ``commands`` that ``tokens`` begin with, and the rest of them; ends the program where there is none."""
    parser = Parser(prog, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.usage = f"{prog} COMMAND [options]"
    width = max(8, *map(len, commands))
    parser.epilog = "commands:\n" + "\n".join(f"  {name:<{width}} {text}" for name, text in commands.items())
    if not tokens or tokens[0].startswith("-"):
        parser.parse_args(tokens)
        parser.print_help()
        parser.exit(WRONG)
    if tokens[0] not in commands:
        unknown_word(parser, "command", tokens[0], commands)
    return tokens[0], tokens[1:]


def config_parser(prog: str, description: str, schema: type[BaseModel], tokens: list[str]) -> Parser:
    """A parser for a command with a configuration file; its help lists every key of the schema."""
    parser = Parser(
        prog,
        description=f"{description}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", metavar="FILE", required=True, help="configuration file, or the name of a shipped one"
    )
    if "workspace" in schema.model_fields:
        parser.add_argument("--workspace", metavar="DIR", help="folder with everything runs keep [./workspace]")
    if {"-h", "--help"} & set(tokens):
        from flows.config import describe, shipped_configs

        parser.epilog = "keys of the configuration, each also an option:\n" + describe(schema)
        shipped, job = shipped_configs(), prog.split()[1]
        if shipped is not None:
            names = ", ".join(sorted(path.stem for path in shipped.glob(f"{job}*.yaml")))
            parser.epilog = f"shipped configurations, with comments, in {shipped}:\n  {names}\n\n{parser.epilog}"
    return parser


def guarded(parser: Parser, tokens: list[str], run: Callable[[argparse.Namespace, list[str]], int]) -> int:
    """Parse and run; an error raised on purpose becomes its text and its exit code, without a traceback."""
    options, overrides = parser.parse_known_args(tokens)
    options.command = shlex.join([*parser.prog.split(), *tokens])
    from curation.errors import CurationError, DataError
    from flows.errors import ConfigError, InputError

    try:
        return run(options, overrides)
    except (ConfigError, InputError, DataError) as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return WRONG
    except CurationError as error:
        print(f"error: {error}", file=sys.stderr)
        print(f"Go on from here with: {options.command}", file=sys.stderr)
        return FAILED
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _unread():
            raise
        place = f": {error.filename}" if error.filename else ""
        print(f"error: {error.strerror or error}{place}", file=sys.stderr)
        print(f"What is finished is kept; go on with: {options.command}", file=sys.stderr)
        return FAILED


def _unread() -> bool:
    """Whether nobody reads standard output any more."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def unknown_word(parser: Parser, kind: str, word: str, known: dict[str, str]) -> NoReturn:
    """End the program with the known word that was probably meant, or with all of them."""
    import difflib

    near = difflib.get_close_matches(word, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
    parser.error(f"unknown {kind} {word!r}; {hint}")
