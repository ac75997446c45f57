"""The command that examines everything and says how to mend what is wrong."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime

import click

from batch import formatting
from batch.commands.options import json_option
from batch.doctor.doctor import examine
from batch.doctor.finding import Finding, Status, worst
from contract.errors import OvernightError
from contract.settings import Settings


@click.command(epilog="Example: python -m batch doctor --json")
@json_option
@click.pass_obj
def doctor(settings: Settings, as_json: bool) -> None:
    """Examine Postgres, Redis, the live runs and their models; change nothing.

    Each line says what was found and, where something is wrong, how to mend
    it. The exit code is 1 if a check fails; warnings leave it at 0.
    """
    findings = examine(settings, datetime.now(UTC))
    if as_json:
        record = {"status": worst(findings), "findings": [asdict(finding) for finding in findings]}
        click.echo(formatting.as_json(record))
    else:
        click.echo(_as_text(findings))
    failed = sum(finding.status is Status.FAIL for finding in findings)
    if failed:
        raise OvernightError(f"{failed} of {len(findings)} checks failed")


def _as_text(findings: list[Finding]) -> str:
    width = max(len(finding.check) for finding in findings)
    lines = []
    for finding in findings:
        status = finding.status.upper() if finding.status is Status.FAIL else finding.status
        lines.append(f"{status:<4}  {finding.check:<{width}}  {finding.found}")
        if finding.mend:
            lines.append(f"{'':<4}  {'':<{width}}  -> {finding.mend}")
    return "\n".join(lines)
