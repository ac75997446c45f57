"""`python -m batch alert`: send an alert to the webhook."""

from __future__ import annotations

import click

from batch.alerts.alert import Alert, Event, deliver
from batch.alerts.webhook import host_of
from contract.errors import SettingsError
from contract.settings import Settings

EXAMPLE = """\b
Example, for a monitor of your own:
  python -m scheduler --check || python -m batch alert --event run_late --reason "no run since last night"
"""


@click.command(epilog=EXAMPLE)
@click.option(
    "--event",
    type=click.Choice([str(event) for event in Event]),
    default=str(Event.TEST),
    show_default=True,
    help="The event to report.",
)
@click.option("--reason", default="sent by hand", show_default=True, help="The reason, in a sentence.")
@click.pass_obj
def alert(settings: Settings, event: str, reason: str) -> None:
    """Send an alert to OVERNIGHT_WEBHOOK_URL now, to check that it arrives.

    Exits 1 if it is not delivered.
    """
    if not settings.schedule.webhook_url:
        raise SettingsError(
            "OVERNIGHT_WEBHOOK_URL is empty, so no alert was sent; set it to the URL of your webhook"
        )
    deliver(settings, Alert(Event(event), reason))
    click.echo(f"the alert {event} was delivered to {host_of(settings.schedule.webhook_url)}")
