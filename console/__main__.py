"""`python -m console`: serve the pages under gunicorn, or make a password for one of their users."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from console.sign_in import MAX_PASSWORD, MIN_PASSWORD, make_user
from contract.settings import ROLES, USER_NAME, VIEWER


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.pass_context
def cli(context: click.Context) -> None:
    """Serve the console, or make a password for one of its users."""
    if context.invoked_subcommand is None:
        _serve()


@cli.command()
@click.argument("name")
@click.option("--role", type=click.Choice(ROLES), default=VIEWER, show_default=True)
def password(name: str, role: str) -> None:
    """Ask for a password and print the user for OVERNIGHT_CONSOLE_USERS."""
    if not USER_NAME.fullmatch(name):
        raise click.BadParameter("must be 1 to 64 letters, digits and any of ._@+-", param_hint="NAME")
    given = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    if not MIN_PASSWORD <= len(given) <= MAX_PASSWORD:
        raise click.ClickException(f"the password must have {MIN_PASSWORD} to {MAX_PASSWORD} characters")
    click.echo("Put this into OVERNIGHT_CONSOLE_USERS, in single quotes:", err=True)
    click.echo(make_user(name, role, given))


def _serve() -> None:
    """Become gunicorn, from whatever folder this was started in."""
    root = Path(__file__).parents[1]
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    config = str(root / "console" / "gunicorn.conf.py")
    command = [sys.executable, "-m", "gunicorn", "-c", config, "console.wsgi:app"]
    os.execve(sys.executable, command, os.environ | {"PYTHONPATH": os.pathsep.join(paths)})


if __name__ == "__main__":
    cli.main(prog_name="python -m console")
