"""`python -m console`: serve the pages under gunicorn."""

from __future__ import annotations

import os
import sys

import click


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.pass_context
def cli(context: click.Context) -> None:
    """Serve the console, or make a password for one of its users."""
    if context.invoked_subcommand is None:
        os.execv(
            sys.executable,
            [sys.executable, "-m", "gunicorn", "-c", "console/gunicorn.conf.py", "console.wsgi:app"],
        )


if __name__ == "__main__":
    cli.main(prog_name="python -m console")
