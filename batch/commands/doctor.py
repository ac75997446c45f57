"""The commands `doctor` (check everything, say how to fix it) and `alert` (send one to the webhook)."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from batch import formatting
from batch.alerts.alert import Alert, Event, deliver, host_of
from batch.commands.options import json_option
from batch.doctor.doctor import run_checks
from batch.doctor.finding import Finding, Status, worst_status
from contract.errors import OvernightError, SettingsError
from contract.settings import Settings


@click.command(epilog="Example: python -m batch doctor --json")
@json_option
@click.pass_obj
def doctor(settings: Settings, as_json: bool) -> None:
    """Check Postgres, Redis, the live runs and their models; change nothing.

    Each line shows one check and its result; the line below it says how to fix
    a problem. The exit code is 1 if a check fails; warnings leave it at 0.
    """
    findings = run_checks(settings, datetime.now(UTC))
    if as_json:
        fields = {"status": worst_status(findings), "findings": [finding.as_dict() for finding in findings]}
        formatting.echo(formatting.as_json(fields))
    else:
        formatting.echo(_render(findings))
    failed = sum(finding.status is Status.FAIL for finding in findings)
    if failed:
        raise OvernightError(f"{failed} of {len(findings)} checks failed")


def _render(findings: list[Finding]) -> str:
    width = max(len(finding.check) for finding in findings)
    lines = []
    for finding in findings:
        status = finding.status.upper() if finding.status is Status.FAIL else finding.status
        lines.append(f"{status:<4}  {finding.check:<{width}}  {finding.found}")
        if finding.fix:
            lines.append(f"{'':<4}  {'':<{width}}  -> {finding.fix}")
    return "\n".join(lines)


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
    formatting.echo(f"the alert {event} was delivered to {host_of(settings.schedule.webhook_url)}")
