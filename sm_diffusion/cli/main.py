"""`smd`: one command, one module a subcommand. A module is imported only when its subcommand is used.

A subcommand's module exposes HELP (one line), EXAMPLES (lines to copy), add_arguments(parser) and run(args) -> status.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from sm_diffusion import __version__
from sm_diffusion.types import UserError

COMMANDS = {
    "config": "sm_diffusion.cli.config",
    "prepare": "sm_diffusion.cli.prepare",
    "plan": "sm_diffusion.cli.plan",
    "convert": "sm_diffusion.cli.convert",
    "run": "sm_diffusion.cli.experiments.run",
    "table": "sm_diffusion.cli.experiments.table",
    "plot": "sm_diffusion.cli.experiments.plot",
    "report": "sm_diffusion.cli.experiments.report",
    "sweep": "sm_diffusion.cli.experiments.sweep",
    "search": "sm_diffusion.cli.experiments.search",
    "sample": "sm_diffusion.cli.sample",
    "view": "sm_diffusion.cli.view",
    "chat": "sm_diffusion.cli.chat",
    "lm-eval": "sm_diffusion.cli.lm_eval",
    "bench": "sm_diffusion.cli.bench",
}
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


def available() -> dict[str, str]:
    """The subcommands whose module is there."""
    return {name: module for name, module in COMMANDS.items() if importlib.util.find_spec(module) is not None}


def _formatter(prog: str) -> argparse.HelpFormatter:
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=30, width=100)


def command_parser(name: str, module: ModuleType) -> argparse.ArgumentParser:
    """The parser of one subcommand, its examples below the options."""
    examples = "\n".join(f"  {line}" for line in module.EXAMPLES.strip().splitlines())
    parser = argparse.ArgumentParser(
        prog=f"smd {name}", description=module.HELP, epilog=f"examples:\n{examples}", formatter_class=_formatter
    )
    module.add_arguments(parser)
    return parser


def main_parser(commands: dict[str, str], *, describe: bool) -> argparse.ArgumentParser:
    """describe: import every module for its line of help."""
    lines = [
        f"  {name:<8} {importlib.import_module(module).HELP if describe else ''}" for name, module in commands.items()
    ]
    parser = argparse.ArgumentParser(
        prog="smd",
        description="Tools around train.py and eval.py for soft-masked diffusion language models.",
        epilog="commands:\n" + "\n".join(lines) + "\n\nsmd COMMAND --help shows options and examples.",
        formatter_class=_formatter,
    )
    parser.add_argument("--version", action="version", version=f"smd {__version__}")
    parser.add_argument("command", metavar="COMMAND", help="one of the commands below")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Status 0: done; 2: the user can fix it, one line on stderr; 130: interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # smd table ... | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE


def _dispatch(arguments: list[str]) -> int:
    commands = available()
    if not arguments or arguments[0] not in commands:
        parser = main_parser(commands, describe=not arguments or arguments[0] in ("-h", "--help"))
        if not arguments:
            parser.print_help(sys.stderr)
            return EXIT_USER_ERROR
        name = parser.parse_args(arguments[:1]).command
        parser.exit(EXIT_USER_ERROR, f"error: {name}: no such command; choose one of: {', '.join(commands)}\n")
    module = importlib.import_module(commands[arguments[0]])
    status = module.run(_parse(command_parser(arguments[0], module), arguments[1:]))
    sys.stdout.flush()
    return int(status)


def _parse(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    """Options and overrides in any order, where the subcommand has no subcommands of its own."""
    try:
        return parser.parse_intermixed_args(arguments)
    except TypeError:
        return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
