"""What the command line prints: tables of text, made from records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import redis
import sqlalchemy as sa

from batch.judging import show_evaluation
from batch.layout import table
from contract.codec import decode_list, decode_object
from contract.errors import StoreError
from contract.experiment import NO_EXPERIMENT, VARIANTS, Experiment
from contract.keys import Keys


def summary(manifest: dict[str, Any]) -> str:
    """Tell a run: what it wrote, its metrics beside the baselines, its stages."""
    metrics = manifest["metrics"]
    stages = [[row["stage"], row["seconds"], row["peak_mib"], _details(row)] for row in manifest["stages"]]
    return "\n".join(
        [
            f"{manifest['run_id']}: {manifest['state']}, {manifest['users']} users x "
            f"{manifest['posts']} posts, top {manifest['top_n']}, {manifest['bytes_per_user']} bytes a user",
            f"lists: {manifest['short_lists']} short, {manifest['empty_lists']} empty, "
            f"checksum {manifest['checksum'][:16]}",
            "",
            show_evaluation.of_run(metrics),
            "",
            table(["stage", "seconds", "peak MiB", ""], stages),
            "",
            *_gate(manifest),
        ]
    )


def _gate(manifest: dict[str, Any]) -> list[str]:
    """Tell what the gate made of a run; nothing of one from before there was a gate."""
    rows = [
        [
            verdict["rule"],
            verdict["value"],
            _bound(verdict["bound"]),
            "yes" if verdict["passed"] else "NO",
            verdict["why"],
        ]
        for verdict in manifest.get("gate", [])
    ]
    forced = ["published by --force, against the gate"] if manifest.get("forced") else []
    return [table(["gate", "value", "bound", "passed", ""], rows), *forced, ""] if rows else []


def _bound(bound: float | list[float]) -> str:
    return " to ".join(map(str, bound)) if isinstance(bound, list) else str(bound)


def runs(found: Sequence[sa.Row[Any]]) -> str:
    """List runs, a line each."""
    if not found:
        return "no runs yet; `python -m batch run` makes one"
    return table(
        ["run", "state", "cutoff", "hitrate@5", "started by", "reason"],
        [[row.run_id, row.state, row.cutoff, _hitrate(row.manifest), row.actor, row.reason] for row in found],
    )


def run(found: sa.Row[Any], changes: Sequence[sa.Row[Any]]) -> str:
    """Tell one run with the story of its states."""
    story = table(
        ["at", "state", "by", "reason"], [[row.at, row.state, row.actor, row.reason] for row in changes]
    )
    told = summary(found.manifest) if found.manifest else f"{found.run_id}: {found.state}\n"
    return f"{told}\n{story}"


def lookup(client: redis.Redis, keys: Keys, user_id: int) -> str:
    """Show a user's list as serving takes it: variant, run, then posts with score and topic.

    Raises
    ------
    StoreError
        No run is live.
    """
    variant = _experiment(client, keys).variant_of(user_id)
    live = {name: str(client.get(keys.live(name)) or "") for name in VARIANTS}
    served = variant if live[variant] else next((name for name in VARIANTS if live[name]), None)
    if served is None:
        raise StoreError("no run is live; `python -m batch run` makes one")
    key = keys.user(live[served], user_id)
    value = client.get(key)
    head = f"user {user_id}: variant {variant}, run {live[served]}\nkey {key}"
    if value is None:
        return f"{head}\nno list: the popular posts are served"
    posts = decode_list(value)
    if not posts:
        return f"{head}\nan empty list, they liked everything: the popular posts are served"
    texts = client.hmget(keys.posts, [str(post_id) for post_id, _ in posts])
    blocked = client.smembers(keys.blocked)
    rows = [
        [
            rank,
            post_id,
            score,
            decode_object(text).get("topic") if text else None,
            "blocked" if str(post_id) in blocked else "",
        ]
        for rank, ((post_id, score), text) in enumerate(zip(posts, texts, strict=True), start=1)
    ]
    return f"{head}\n{table(['rank', 'post', 'score', 'topic', ''], rows)}"


def _experiment(client: redis.Redis, keys: Keys) -> Experiment:
    stored = client.get(keys.experiment)
    try:
        return Experiment.from_fields(decode_object(stored)) if stored else NO_EXPERIMENT
    except ValueError as error:
        raise StoreError(f"{keys.experiment} is broken: {error}; SET it anew, or DEL it") from None


def _details(row: dict[str, Any]) -> str:
    return ", ".join(f"{name} {row[name]}" for name in row if name not in ("stage", "seconds", "peak_mib"))


def _hitrate(manifest: dict[str, Any] | None) -> float | None:
    return manifest["metrics"]["model"]["hitrate_at_5"] if manifest else None
