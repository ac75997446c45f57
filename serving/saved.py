"""The state in a file, which a worker that starts while Redis is away finds what others had loaded in.

Without Redis every answer is a popular list, so of the texts only those posts' are kept.
"""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import Any

from contract.codec import decode_list, decode_object, encode_list, encode_object
from contract.experiment import Experiment
from serving.state import Run, State
from serving.texts import Post, Texts


def save(state: State, path: Path) -> None:
    """Write a state to a file, in place of the one before; several processes may do so at once."""
    runs = [
        {
            "run_id": run.run_id,
            "variant": run.variant,
            "published_at": run.published_at.isoformat(),
            "popular": encode_list(run.popular),
            "recipe": run.recipe,
        }
        for run in state.runs.values()
    ]
    popular = sorted({post_id for run in state.runs.values() for post_id, _ in run.popular})
    texts = zip(popular, state.texts.of(popular, lambda _: {}), strict=True)
    fields = {
        "runs": runs,
        "experiment": state.experiment.to_fields(),
        "blocked": sorted(state.blocked),
        "texts": [[post_id, post.text, post.topic] for post_id, post in texts],
    }
    part = path.with_suffix(f".{os.getpid()}")
    part.write_text(encode_object(fields), encoding="utf-8")
    part.replace(path)


def load(path: Path, texts_in_memory: int) -> State | None:
    """Read what `save` wrote, as a stale state; None if there is none.

    Texts that are not in the file are read from Redis when they are needed,
    should Redis answer requests before the next refresh.

    Raises
    ------
    ValueError
        If another version wrote something else there.
    """
    if not path.exists():
        return None
    fields = decode_object(path.read_bytes())
    try:
        runs = [_run(saved) for saved in fields["runs"]]
        texts = {post_id: Post(text, topic) for post_id, text, topic in fields["texts"]}
        return State(
            {run.variant: run for run in runs},
            Experiment.from_fields(fields["experiment"]),
            frozenset(fields["blocked"]),
            Texts(texts, texts_in_memory),
            stale=True,
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a saved state: {error!r}") from None


def _run(saved: dict[str, Any]) -> Run:
    """Decode a run; files of earlier releases do not name its recipe."""
    published_at, popular = datetime.fromisoformat(saved["published_at"]), decode_list(saved["popular"])
    return Run(saved["run_id"], saved["variant"], published_at, popular, saved.get("recipe"))
