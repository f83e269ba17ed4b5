"""The command line. Nothing heavy is imported before a command is known to be right: ``--help`` answers at once.

Exit codes: 0 done; 1 a stage failed; 2 the configuration or the data is wrong; 130 interrupted with Ctrl-C; 143 ended
with SIGTERM, which is otherwise taken as Ctrl-C is.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from flows import __version__
from flows.parsers import (
    DONE,
    INTERRUPTED,
    TERMINATED,
    WRONG,
    Parser,
    add_workspace,
    config_parser,
    guarded,
    subcommand,
    unknown_word,
)

if TYPE_CHECKING:
    from flows.schema import RecordedConfig

DESCRIPTION = "Find the training examples that made a model do what it does, and act on it: clean them, unlearn them, select them."
COMMANDS = {
    "approve": "approve the records that a run of unlearn would remove, or reject them",
    "clean": "find wrong labels, edit them, retrain, report",
    "index": "build, query, inspect, verify or change a LoRIF index",
    "requests": "note requests to remove records, list them, check their evidence",
    "select": "choose the rows worth fine-tuning on, and show it",
    "serve": "run clean or select on a schedule",
    "unlearn": "remove records from a model, keep the rest, and show it",
    "workspace": "free the space of results that no run uses",
}
INDEX_COMMANDS = {
    "build": "train or load the model and index its training rows",
    "query": "show the strongest training rows for validation rows",
    "info": "describe an index",
    "verify": "check every byte of an index",
    "append": "add training rows that an index does not have yet",
    "purge": "remove rows and their bytes from an index",
    "compact": "merge the small shards of an index",
    "refit": "fit the curvature of an index anew from all its rows",
}
REQUESTS_COMMANDS = {
    "submit": "note a request to remove records; curate unlearn with request.ledger true answers it",
    "list": "list the requests",
    "show": "show a request and what became of it",
    "verify-evidence": "check an evidence file: its digest, its signature and its place in the ledger",
}
WORKSPACE_COMMANDS = {"prune": "delete the results of stages that no run has used for some time"}
KEEP_DAYS = 30.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Nothing failed where whoever read the output has left."""
    code = _run(list(sys.argv[1:] if argv is None else argv))
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python's own last flush fails
    return code


def _run(tokens: list[str]) -> int:
    came: list[int] = []
    try:
        with _interrupts(came, serving=tokens[:1] == ["serve"]):
            code = _dispatch(tokens)
        return _interrupted(tokens, came) if came and code != DONE else code
    except SystemExit as stop:  # argparse ends the process, and rich where nobody reads
        return DONE if isinstance(stop.__context__, BrokenPipeError) else int(stop.code or DONE)
    except KeyboardInterrupt:
        return _interrupted(tokens, came)
    except BrokenPipeError:
        return DONE
    except Exception as error:
        if not came:
            raise
        if not isinstance(
            error.__cause__ or error.__context__, KeyboardInterrupt
        ):  # which pydantic makes its own error of
            print(f"\nWhile it stopped: {type(error).__name__}: {error}", file=sys.stderr)
        return _interrupted(tokens, came)


def _interrupted(tokens: list[str], came: list[int]) -> int:
    command = shlex.join(["curate", *tokens])
    print(f"\nInterrupted. What is finished is kept; go on with: {command}", file=sys.stderr)
    return TERMINATED if signal.SIGTERM in came else INTERRUPTED


@contextmanager
def _interrupts(came: list[int], *, serving: bool) -> Iterator[None]:
    """Let SIGTERM unwind the program as Ctrl-C does, so that it leaves the same good order behind, and note which came.

    Args:
        came: gets the numbers of the signals that came.
        serving: leave Ctrl-C to Prefect's event loop.
    """

    def interrupt(number: int, frame: object) -> None:
        came.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread is told of signals
        return
    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, interrupt)}
    heard = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # a shell's background job ignores Ctrl-C
    if heard and not serving:
        before[signal.SIGINT] = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _dispatch(tokens: list[str]) -> int:
    parser = Parser("curate", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=f"curate {__version__}")
    listed = "\n".join(f"  {name:<10}{text}" for name, text in COMMANDS.items())
    parser.usage = "curate COMMAND [options]"
    parser.epilog = f"commands:\n{listed}\n\ncurate COMMAND --help lists the options of a command."
    if not tokens or tokens[0].startswith("-"):
        parser.parse_args(tokens)
        parser.print_help()
        return WRONG if not tokens else DONE
    command, rest = tokens[0], tokens[1:]
    if command not in COMMANDS:
        unknown_word(parser, "command", command, COMMANDS)
    commands = {
        "approve": _approve,
        "clean": _clean,
        "index": _index,
        "requests": _requests,
        "select": _select,
        "serve": _serve,
        "unlearn": _unlearn,
        "workspace": _workspace,
    }
    return commands[command](rest)


def _recorded(command: str, schema: type[RecordedConfig], tokens: list[str]) -> int:
    """A command whose run has a folder of results; ``flows.jobs`` has a function of its name."""

    def run(options: argparse.Namespace, overrides: list[str]) -> int:
        from flows import jobs

        jobs_by_name = {"clean": jobs.clean, "select": jobs.select, "unlearn": jobs.unlearn}
        return jobs_by_name[command](options, overrides)

    parser = config_parser(f"curate {command}", COMMANDS[command], schema, tokens)
    parser.add_argument("--output-dir", metavar="DIR", help="folder of the results")
    return guarded(parser, tokens, run)


def _clean(tokens: list[str]) -> int:
    from flows.schema import CleanConfig

    return _recorded("clean", CleanConfig, tokens)


def _select(tokens: list[str]) -> int:
    from flows.select_schema import SelectConfig

    return _recorded("select", SelectConfig, tokens)


def _unlearn(tokens: list[str]) -> int:
    from flows.unlearn_schema import UnlearnConfig

    return _recorded("unlearn", UnlearnConfig, tokens)


def _approve(tokens: list[str]) -> int:
    def run(options: argparse.Namespace, overrides: list[str]) -> int:
        from flows import approval

        if overrides:
            parser.error(f"unknown arguments: {' '.join(overrides)}")
        return approval.approve(options)

    parser = Parser("curate approve", description=COMMANDS["approve"], allow_abbrev=False)
    parser.add_argument("run", metavar="RUN", help="folder of the run, or its name in the workspace")
    parser.add_argument("--digest", metavar="D", required=True, help="of the records, as the run has shown it")
    parser.add_argument("--reject", action="store_true", help="reject them")
    parser.add_argument("--reason", metavar="TEXT", help="why; kept for good, so name no record in it")
    parser.add_argument("--by", metavar="NAME", help="who you are [the user of this system]")
    add_workspace(parser)
    return guarded(parser, tokens, run)


def _index(tokens: list[str]) -> int:
    command, rest = subcommand("curate index", INDEX_COMMANDS, tokens)

    def run(options: argparse.Namespace, overrides: list[str]) -> int:
        from flows import index_changes, index_jobs

        commands = {
            "build": index_jobs.build,
            "query": index_jobs.query,
            "info": index_jobs.info,
            "verify": index_jobs.verify,
            "append": index_changes.append,
            "purge": index_changes.purge,
            "compact": index_changes.compact,
            "refit": index_changes.refit,
        }
        return commands[command](options, overrides)

    name = f"curate index {command}"
    if command in ("info", "verify", "purge", "compact", "refit"):
        parser = Parser(name, description=INDEX_COMMANDS[command])
        parser.add_argument("path", metavar="INDEX", help="folder of the index, or a URL such as s3://bucket/index")
    else:
        from flows.schema import IndexConfig

        parser = config_parser(name, INDEX_COMMANDS[command], IndexConfig, rest)
    parser.add_argument("--json", action="store_true", help="print JSON")
    if command not in ("info", "verify", "compact"):
        text = "of the sums for projections and curvature, such as 500MB; less means more passes [1 GB]"
        parser.add_argument("--memory-limit", metavar="SIZE", help=text)
    if command == "purge":
        parser.add_argument("--ids", metavar="ID", nargs="+", help="ids of the rows to remove")
        parser.add_argument("--ids-file", metavar="FILE", help="text file of such ids, one a line")
        parser.add_argument("--refit", action="store_true", help="fit the curvature anew, instead of updating it")
    if command == "build":
        parser.add_argument("--estimate", action="store_true", help="say what it would take, and build nothing")
    if command == "query":
        parser.add_argument("--rows", metavar="ROWS", default="0", help="validation rows, as 3 or 0,5,9 [0]")
        parser.add_argument("--top", metavar="K", type=int, default=10, help="training rows shown for each [10]")
        parser.add_argument("--opponents", action="store_true", help="show the strongest opponents, not supporters")
    return guarded(parser, rest, run)


def _serve(tokens: list[str]) -> int:
    from flows.serve_schema import ServeConfig

    def run(options: argparse.Namespace, overrides: list[str]) -> int:
        from flows import serving

        return serving.serve(options, overrides)

    parser = config_parser("curate serve", COMMANDS["serve"], ServeConfig, tokens)
    return guarded(parser, tokens, run)


def _requests(tokens: list[str]) -> int:
    command, rest = subcommand("curate requests", REQUESTS_COMMANDS, tokens)

    def run(options: argparse.Namespace, overrides: list[str]) -> int:
        from flows import requests

        if overrides:
            parser.error(f"unknown arguments: {' '.join(overrides)}")
        commands = {
            "submit": requests.submit,
            "list": requests.show_all,
            "show": requests.show,
            "verify-evidence": requests.verify_evidence,
        }
        return commands[command](options)

    parser = Parser(f"curate requests {command}", description=REQUESTS_COMMANDS[command], allow_abbrev=False)
    if command == "submit":
        parser.add_argument("--ids", metavar="FILE", required=True, help="text file of the ids, one a line")
        parser.add_argument(
            "--reason", metavar="TEXT", required=True, help="why; kept for good, so name no record in it"
        )
        parser.add_argument("--dataset", metavar="NAME", help="name of the data, where the workspace has several")
    if command == "list":
        parser.add_argument("--status", metavar="STATUS", help="only those of this status (submitted = waiting)")
    if command == "show":
        parser.add_argument("number", metavar="ID", type=int, help="number of the request")
    if command == "verify-evidence":
        parser.add_argument("path", metavar="FILE", help="the evidence file")
        parser.add_argument(
            "--key", metavar="FILE", help="public key (PEM) it must be signed with; else only who signed is said"
        )
        parser.add_argument("--model", metavar="FILE", help="a checkpoint that it must be about")
        parser.add_argument("--no-ledger", action="store_true", help="check the file and its signature only")
    add_workspace(parser)
    parser.add_argument("--ledger", metavar="URL", help="the ledger, if not ledger.db in the workspace")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return guarded(parser, rest, run)


def _workspace(tokens: list[str]) -> int:
    command, rest = subcommand("curate workspace", WORKSPACE_COMMANDS, tokens)

    def run(options: argparse.Namespace, overrides: list[str]) -> int:
        from flows import workspace

        return workspace.prune(options, overrides)

    parser = Parser(f"curate workspace {command}", description=WORKSPACE_COMMANDS[command], allow_abbrev=False)
    add_workspace(parser)
    parser.add_argument(
        "--keep-days", metavar="N", type=float, default=KEEP_DAYS, help=f"days a result is kept unused [{KEEP_DAYS:g}]"
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be deleted")
    return guarded(parser, rest, run)


if __name__ == "__main__":
    sys.exit(main())
