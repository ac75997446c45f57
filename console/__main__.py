"""`python -m console`: serve the pages under gunicorn."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.pass_context
def cli(context: click.Context) -> None:
    """Serve the console, or make a password for one of its users."""
    if context.invoked_subcommand is None:
        _serve()


def _serve() -> None:
    """Become gunicorn, from whatever folder this was started in."""
    root = Path(__file__).parents[1]
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    config = str(root / "console" / "gunicorn.conf.py")
    command = [sys.executable, "-m", "gunicorn", "-c", config, "console.wsgi:app"]
    os.execve(sys.executable, command, os.environ | {"PYTHONPATH": os.pathsep.join(paths)})


if __name__ == "__main__":
    cli.main(prog_name="python -m console")
