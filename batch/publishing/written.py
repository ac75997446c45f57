"""What was written: counts of lists, and digests of parts of them, added up over tasks in any order."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field


@dataclass
class Written:
    """Lists written so far.

    Attributes
    ----------
    lists, short, empty
        Lists written; those shorter than N; those without any post.
    value_bytes
        Size of all lists.
    digests
        Lists before a part -> SHA-256 of the part: over lines `id<TAB>list<LF>` in the order of the users' or
        posts' ids, which are encoded.
    score_seconds, write_seconds
        Time of scoring, and of encoding and writing, summed over tasks.
    """

    lists: int = 0
    short: int = 0
    empty: int = 0
    value_bytes: int = 0
    digests: dict[int, bytes] = field(default_factory=dict)
    score_seconds: float = 0.0
    write_seconds: float = 0.0

    def add(self, other: Written) -> None:
        """Add other lists."""
        self.lists += other.lists
        self.short += other.short
        self.empty += other.empty
        self.value_bytes += other.value_bytes
        self.digests |= other.digests
        self.score_seconds += other.score_seconds
        self.write_seconds += other.write_seconds

    @property
    def checksum(self) -> str:
        """SHA-256 over the digests of all parts in order, in hex: equal checksums mean equal lists.

        Parts always begin at the same lists, so it does not depend on the tasks that wrote them.
        """
        return hashlib.sha256(b"".join(digest for _, digest in sorted(self.digests.items()))).hexdigest()
