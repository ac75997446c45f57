"""Lists of all users: exclusions, chunks in threads and processes, memory."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from batch.executors.threads import ThreadExecutor
from batch.features.factors import Factors
from batch.features.tables import Kind
from batch.loading.likes import Likes
from batch.scoring.chunk import bytes_per_chunk, score_chunk
from batch.scoring.score import PART_USERS, compile_model, users_per_chunk, users_per_task
from tests.support.scoring_cases import NONE_BLOCKED, Case, make_matrix, make_tables, plain_scores, train

USERS, POSTS, N = 3000, 150, 10
COLUMNS: list[Kind | int] = [Kind.USER, Kind.USER, Kind.POST, Kind.POST, 0, 0, 1]


@pytest.fixture(scope="module")
def case() -> Case:
    random = np.random.default_rng(5)
    contents = ["number", "category", "number", "count", "number", "sparse", "number"]
    matrix = make_matrix(random, 2000, contents)
    booster = train(random, matrix, contents, {"objective": "binary", "num_leaves": 15}, 20)
    return Case(booster, make_tables(random, matrix, COLUMNS, USERS, POSTS), matrix)


@pytest.fixture(scope="module")
def likes() -> Likes:
    random = np.random.default_rng(6)
    users, posts = random.integers(0, USERS, 60_000), random.integers(0, POSTS, 60_000)
    everything = np.full(POSTS, 7), np.arange(POSTS)
    nearly = np.full(POSTS - 4, 8), np.arange(POSTS - 4)
    pairs = np.concatenate([np.stack([users, posts]), everything, nearly], axis=1).astype(np.int32)
    return Likes.from_pairs(pairs[0], pairs[1], USERS)


@pytest.fixture(scope="module")
def factors() -> Factors:
    random = np.random.default_rng(7)
    return Factors(
        random.normal(size=(USERS, 8)).astype(np.float32), random.normal(size=(POSTS, 8)).astype(np.float32)
    )


Arrays = tuple[np.ndarray, np.ndarray]


def score_users(
    case: Case,
    factors: Factors,
    likes: Likes,
    *,
    budget_mib: int,
    threads: int,
    users: int = USERS,
    blocked: np.ndarray = NONE_BLOCKED,
) -> Arrays:
    """Return (users, N) posts and scores."""
    model = compile_model(case.booster, case.tables, factors, likes, blocked)
    return model.score(N, ThreadExecutor(threads, budget_mib), users)


def test_lists_hold_the_best_posts_that_are_neither_liked_nor_blocked(
    case: Case, factors: Factors, likes: Likes
) -> None:
    blocked = np.array([0, 3, 77, POSTS - 1])
    posts, scores = score_users(case, factors, likes, budget_mib=64, threads=2, blocked=blocked)
    expected = plain_scores(case.booster, case.tables, factors)
    expected[likes.users, likes.posts] = -np.inf
    expected[:, blocked] = -np.inf
    left = np.minimum(N, np.isfinite(expected).sum(axis=1))
    assert left[7] == 0
    assert left[8] == 3
    assert ((posts >= 0).sum(axis=1) == left).all()
    assert (np.isnan(scores) == (posts < 0)).all()
    for user in range(USERS):
        kept = posts[user, : left[user]]
        np.testing.assert_allclose(scores[user, : left[user]], expected[user, kept], atol=1e-5)
        np.testing.assert_allclose(expected[user, kept], -np.sort(-expected[user])[: left[user]], atol=1e-5)


def check_same(found: Arrays, expected: Arrays) -> None:
    """Check that two results of `score_users` are equal byte for byte."""
    for one, other in zip(found, expected, strict=True):
        assert one.tobytes() == other.tobytes()


def test_chunks_and_threads_give_the_same_lists(case: Case, factors: Factors, likes: Likes) -> None:
    whole = score_users(case, factors, likes, budget_mib=512, threads=1)
    check_same(whole, score_users(case, factors, likes, budget_mib=2, threads=1))
    check_same(whole, score_users(case, factors, likes, budget_mib=5, threads=3))


@pytest.mark.parametrize(("users", "slots"), [(1, 2), (5_000, 2), (163_205, 2), (163_205, 100), (10**7, 16)])
def test_tasks_begin_at_parts_are_of_similar_size_and_more_than_there_are_slots(
    users: int, slots: int
) -> None:
    size = users_per_task(users, slots)
    assert size % PART_USERS == 0
    assert size <= 16 * PART_USERS
    tasks = -(-users // size)
    assert tasks >= min(2 * slots, users // (2 * PART_USERS))
    assert users - (tasks - 1) * size >= size - tasks * PART_USERS


def test_a_chunk_pickles_without_the_other_users(case: Case, factors: Factors, likes: Likes) -> None:
    model = compile_model(case.booster, case.tables, factors, likes, NONE_BLOCKED)
    rows = model.user_rows(100, 200)
    assert len(pickle.dumps(rows)) < len(pickle.dumps((case.tables, factors, likes))) / 20
    assert len(pickle.dumps(model.forest)) < 2**21


OTHER_PROCESSOR = """
import pickle, sys
from batch.scoring.chunk import score_chunk

with open(sys.argv[1], "rb") as file:
    lists = score_chunk(*pickle.load(file))
sys.stdout.buffer.write(lists.posts.tobytes() + lists.scores.tobytes())
"""


def test_a_processor_without_fused_multiply_add_gives_the_same_bits(
    case: Case, factors: Factors, likes: Likes, tmp_path: Path
) -> None:
    model = compile_model(case.booster, case.tables, factors, likes, NONE_BLOCKED)
    chunk = model.forest, model.user_rows(0, 500), POSTS
    (tmp_path / "chunk").write_bytes(pickle.dumps(chunk))
    other = os.environ | {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    ran = subprocess.run(
        [sys.executable, "-c", OTHER_PROCESSOR, str(tmp_path / "chunk")],
        cwd=Path(__file__).parents[2],
        env=other | {"NUMBA_CACHE_DIR": str(tmp_path / "compiled")},
        capture_output=True,
        check=True,
    )
    lists = score_chunk(*chunk)
    assert ran.stdout == lists.posts.tobytes() + lists.scores.tobytes()


def test_the_memory_budget_determines_how_many_users_make_a_chunk(
    case: Case, factors: Factors, likes: Likes
) -> None:
    model = compile_model(case.booster, case.tables, factors, likes, NONE_BLOCKED)
    fixed = bytes_per_chunk(model.forest) / 2**20
    budgets = (0.001, fixed + 1, fixed + 2, fixed + 4)
    rows = model.user_rows(0, USERS)

    def chunk_of(users: int, budget_mib: float) -> int:
        many = replace(rows, values=np.broadcast_to(np.float32(0), (users, 1)))
        return users_per_chunk(model.forest, many, N, budget_mib)

    sizes = [chunk_of(10**7, budget_mib) for budget_mib in budgets]
    assert sizes[0] == 1
    assert 100 < sizes[1] < 1000
    assert sizes[2:] == pytest.approx([2 * sizes[1], 4 * sizes[1]], rel=0.01)
    assert chunk_of(3 * sizes[1] - 1, fixed + 1) <= sizes[1]


def test_some_users_or_none_can_be_scored(case: Case, factors: Factors, likes: Likes) -> None:
    posts, _ = score_users(case, factors, likes, budget_mib=64, threads=2, users=41)
    assert len(posts) == 41
    model = compile_model(case.booster, case.tables, factors, likes, NONE_BLOCKED)
    assert len(model.score(N, ThreadExecutor(2, 64), 0)[0]) == 0


def test_if_all_posts_are_blocked_lists_are_empty(case: Case, factors: Factors, likes: Likes) -> None:
    posts, _ = score_users(case, factors, likes, budget_mib=64, threads=1, blocked=np.arange(POSTS))
    assert (posts == -1).all()


def test_equal_scores_are_ordered_by_likes_then_by_row(likes: Likes) -> None:
    random = np.random.default_rng(8)
    matrix = make_matrix(random, 200, ["number"] * 2)
    # Too few rows for a split: all scores are equal.
    parameters = {"objective": "binary", "min_data_in_leaf": 150}
    booster = train(random, matrix, ["number"] * 2, parameters, 3)
    tables = make_tables(random, matrix, [Kind.USER, Kind.POST], USERS, POSTS)
    popularity = random.integers(0, 20, POSTS).astype(np.float64)
    model = compile_model(booster, replace(tables, post_likes=popularity), None, likes, NONE_BLOCKED)
    by_likes = sorted(range(POSTS), key=lambda post: (-popularity[post], post))
    assert by_likes[:N] != list(range(N))
    found = zip(*model.score(N, ThreadExecutor(2, 64)), strict=True)
    for user, (posts, scores) in enumerate(found):
        liked = set(likes.of(user).tolist())
        expected = [post for post in by_likes if post not in liked][:N]
        assert posts.tolist() == expected + [-1] * (N - len(expected))
        assert len(set(scores[: len(expected)].tolist())) <= 1
    assert user == USERS - 1


LIMITED = """
import resource, sys
import numpy as np
from batch.loading.likes import Likes
from batch.executors.threads import ThreadExecutor
from batch.scoring.score import compile_model, score_in_chunks
from batch.features.tables import Kind
from tests.support.scoring_cases import make_matrix, make_tables, train

users, budget_mib, allowed_mib = (int(word) for word in sys.argv[1:])
random = np.random.default_rng(0)
kinds = [Kind.USER, Kind.USER, Kind.POST, Kind.POST, 0]
matrix = make_matrix(random, 2000, ["number"] * 5)
booster = train(random, matrix, ["number"] * 5, {"objective": "binary", "num_leaves": 31}, 30)
likes = Likes(np.zeros(users + 1, dtype=np.int64), np.empty(0, dtype=np.int32))

def score_users(count):
    tables = make_tables(np.random.default_rng(1), matrix, kinds, users, 300)
    model = compile_model(booster, tables, None, likes, np.empty(0, dtype=np.int64))
    executor = ThreadExecutor(2, budget_mib)
    return sum(executor.map(count_posts, model.forest, lambda slots: model.cut(count, slots)))

def count_posts(context, forest, task):
    chunks = score_in_chunks(forest, task[1], 100, context.budget_mib)
    return sum(int((lists.posts >= 0).sum()) for _, lists in chunks)

score_users(10)  # compile first: that takes memory, too
used = 1024 * int(open("/proc/self/status").read().split("VmData:")[1].split()[0])
resource.setrlimit(resource.RLIMIT_DATA, (used + allowed_mib * 2**20,) * 2)
try:
    np.ones(allowed_mib * 2**17 + 2**20)
    raise SystemExit("the limit is not enforced")
except MemoryError:
    pass
assert score_users(users) == users * 100
print("done")
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("users", [20_000, 100_000])
def test_memory_stays_under_a_hard_limit_for_any_number_of_users(users: int) -> None:
    root = Path(__file__).parents[2]
    # All 100,000 users at once would need 700 MiB; the features themselves are 10 to 50 MiB.
    ran = subprocess.run(
        [sys.executable, "-c", LIMITED, str(users), "32", "256"],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root), "MALLOC_ARENA_MAX": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stdout.strip() == "done", ran.stderr[-2000:]
