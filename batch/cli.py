"""The command line: loads the command, and turns errors into one line and an exit code."""

from __future__ import annotations

import logging
import sys
from importlib import import_module
from typing import Any, NoReturn

import click

from batch.formatting import echo
from batch.signals import InterruptedRunError
from contract.errors import EXIT_DONE, EXIT_FAILED, OvernightError
from contract.logs import configure_logging, redact
from contract.settings import Settings
from contract.text import escape_line

MODULES = {
    "alert": "doctor",
    "backtest": "evaluate",
    "block": "blocklist",
    "dask-scheduler": "dask",
    "dask-worker": "dask",
    "diff": "lookup",
    "doctor": "doctor",
    "evaluate": "evaluate",
    "experiment": "experiment",
    "explain": "explain",
    "forget": "forget",
    "lookup": "lookup",
    "prune": "prune",
    "refresh": "refresh",
    "report": "runs",
    "rollback": "prune",
    "run": "run",
    "runs": "runs",
    "show": "runs",
    "tune": "tune",
    "unblock": "blocklist",
}
"""Command -> module of batch/commands that has a function of that name, with _ for -."""


class Commands(click.Group):
    """Loads a command when it is needed: those that train a model take seconds to import."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return list(MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command by its name; None if there is none.

        Raises
        ------
        OvernightError
            A system library that LightGBM needs is missing.
        """
        if cmd_name not in MODULES:
            return None
        try:
            module = import_module(f"batch.commands.{MODULES[cmd_name]}")
            command: Any = getattr(module, cmd_name.replace("-", "_"))
        except OSError as error:
            raise OvernightError(
                f"LightGBM cannot be loaded: {error}; on Debian and Ubuntu: apt-get install libgomp1"
            ) from None
        return command if isinstance(command, click.Command) else None


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.pass_context
def cli(context: click.Context) -> None:
    """Overnight's nightly job and the tools of its operators. Settings come from the environment."""
    context.obj = Settings.from_environment()
    configure_logging(context.obj)


def main() -> NoReturn:
    """Run a command; an expected error becomes one line on stderr and an exit code."""
    try:
        cli.main(prog_name="python -m batch", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "python -m batch"
        reason = " ".join(error.format_message().split())
        reason += "" if reason.endswith((".", "?")) else "."
        _print_error(f"{reason} Try '{command} --help'.")
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _print_error("stopped")
        sys.exit(EXIT_FAILED)
    except InterruptedRunError as error:
        _print_error(str(error))
        sys.exit(EXIT_FAILED)
    except OvernightError as error:
        _print_error(redact(str(error), _secrets()))
        sys.exit(error.exit_code)
    except Exception as error:
        logging.getLogger("batch").exception("unexpected")
        _print_error(redact(f"{type(error).__name__}: {error}", _secrets()))
        sys.exit(EXIT_FAILED)
    sys.exit(EXIT_DONE)


def _print_error(message: str) -> None:
    """Print an error as one line, whatever the names in it contain."""
    echo(f"error: {escape_line(message)}", err=True)


def _secrets() -> list[str]:
    try:
        return Settings.from_environment().secrets()
    except OvernightError:
        return []
