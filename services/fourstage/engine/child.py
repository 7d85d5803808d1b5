"""A service as an engine starts it: what ``fourstage loader|augmenter|trainer`` runs, without a person's comforts.

Every process of a run starts at the same time, and typer and rich would cost each of them 60 ms of its core.
"""

import argparse
import sys
from pathlib import Path
from typing import NoReturn

from fourstage.ending import end_with
from fourstage.resolve import load_settings
from fourstage.services import Launch, run_augmenter, run_loader, run_trainer

LIFELINE = "--lifeline"
"""With this argument a service is an engine's, and reads its lifeline from standard input."""


def main() -> NoReturn:
    """The entry point."""
    arguments = _parser().parse_args(sys.argv[1:])
    end_with(lambda: _run(arguments), debug=arguments.debug)


def _run(arguments: argparse.Namespace) -> int:
    settings = load_settings(arguments.settings)
    launch = Launch(settings, arguments.announce, lifeline=arguments.lifeline, debug=arguments.debug)
    match arguments.role:
        case "loader":
            return run_loader(launch, arguments.store)
        case "augmenter":
            return run_augmenter(launch, arguments.name)
        case _:
            return run_trainer(launch, arguments.run_dir, resume=arguments.resume)


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--settings", required=True)
    common.add_argument("--announce", type=Path, required=True)
    common.add_argument(LIFELINE, action="store_true", required=True)
    common.add_argument("--debug", action="store_true")
    parser = argparse.ArgumentParser(prog="fourstage", add_help=False)
    roles = parser.add_subparsers(dest="role", required=True)
    roles.add_parser("loader", parents=[common]).add_argument("--store", type=Path, required=True)
    roles.add_parser("augmenter", parents=[common]).add_argument("--name", required=True)
    trainer = roles.add_parser("trainer", parents=[common])
    trainer.add_argument("--run-dir", type=Path, required=True)
    trainer.add_argument("--resume", action="store_true")
    return parser
