"""The command line: what operators look at and change by hand; what learns has files of its own."""

from __future__ import annotations

import logging
import sys
from importlib import import_module
from typing import Any, NoReturn

import click

from batch.commands import show
from batch.interrupt import InterruptedRunError
from batch.loading import source
from batch.publishing import store
from batch.runs import ledger
from contract.errors import EXIT_DONE, EXIT_FAILED, OvernightError
from contract.keys import Keys
from contract.logs import configure_logging, redact
from contract.settings import Settings

IN_FILES_OF_THEIR_OWN = {
    "run": "batch.commands.run",
    "evaluate": "batch.commands.evaluate",
    "refresh": "batch.commands.refresh",
    "report": "batch.commands.report",
    "tune": "batch.commands.tune",
}


class Commands(click.Group):
    """Loads a command when it is asked for: those that learn take seconds to load."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name all commands."""
        return sorted([*super().list_commands(ctx), *IN_FILES_OF_THEIR_OWN])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command by its name.

        Raises
        ------
        OvernightError
            A system library is missing that LightGBM needs.
        """
        if cmd_name not in IN_FILES_OF_THEIR_OWN:
            return super().get_command(ctx, cmd_name)
        try:
            command: Any = getattr(import_module(IN_FILES_OF_THEIR_OWN[cmd_name]), cmd_name)
        except OSError as error:
            raise OvernightError(
                f"LightGBM cannot be loaded: {error}; on Debian and Ubuntu: apt-get install libgomp1"
            ) from None
        return command if isinstance(command, click.Command) else None


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.pass_context
def cli(context: click.Context) -> None:
    """Overnight's nightly job and its operators' tools. Settings come from the environment."""
    context.obj = Settings.from_environment()
    configure_logging(context.obj)


@cli.command()
@click.option(
    "--count", type=click.IntRange(min=1), default=20, show_default=True, help="How many, newest first."
)
@click.pass_obj
def runs(settings: Settings, count: int) -> None:
    """List the newest runs and their states."""
    with source.connected(settings) as engine:
        ledger.create(engine)
        click.echo(show.runs(ledger.newest(engine, count)))


@cli.command(name="show")
@click.argument("run_id", metavar="RUN")
@click.pass_obj
def show_run(settings: Settings, run_id: str) -> None:
    """Show one run: states, metrics, stages."""
    with source.connected(settings) as engine:
        ledger.create(engine)
        found = ledger.find(engine, run_id)
    if found is None:
        raise OvernightError(f"there is no run {run_id}; `python -m batch runs` lists them")
    click.echo(show.run(*found))


@cli.command()
@click.argument("user_id", metavar="USER", type=int)
@click.pass_obj
def lookup(settings: Settings, user_id: int) -> None:
    """Show the list that serving would take a user's recommendations from."""
    with store.connected(settings) as client:
        click.echo(show.lookup(client, Keys(settings.key_prefix), user_id))


@cli.command()
@click.argument("post_id", metavar="POST", type=int)
@click.pass_obj
def block(settings: Settings, post_id: int) -> None:
    """Keep a post out of every answer, within about a second."""
    with store.connected(settings) as client:
        added = client.sadd(Keys(settings.key_prefix).blocked, post_id)
    click.echo(f"post {post_id} is blocked" if added else f"post {post_id} was blocked already")


@cli.command()
@click.argument("post_id", metavar="POST", type=int)
@click.pass_obj
def unblock(settings: Settings, post_id: int) -> None:
    """Let a blocked post be served again: from lists that hold it still, and by the next run."""
    with store.connected(settings) as client:
        removed = client.srem(Keys(settings.key_prefix).blocked, post_id)
    click.echo(f"post {post_id} is no longer blocked" if removed else f"post {post_id} was not blocked")


def main() -> NoReturn:
    """Run a command; an error a person can mend is one line on stderr and an exit code."""
    try:
        cli.main(prog_name="python -m batch", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "python -m batch"
        reason = " ".join(error.format_message().split())
        click.echo(f"error: {reason} Try '{command} --help'.", err=True)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("error: stopped", err=True)
        sys.exit(EXIT_FAILED)
    except InterruptedRunError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(EXIT_FAILED)
    except OvernightError as error:
        click.echo(f"error: {redact(str(error), _secrets())}", err=True)
        sys.exit(error.exit_code)
    except Exception as error:
        logging.getLogger("batch").exception("unexpected")
        click.echo(f"error: {redact(f'{type(error).__name__}: {error}', _secrets())}", err=True)
        sys.exit(EXIT_FAILED)
    sys.exit(EXIT_DONE)


def _secrets() -> list[str]:
    try:
        return Settings.from_environment().secrets()
    except OvernightError:
        return []
