"""Tuning: what it saves and continues; the next run uses it, and the holdout does not influence it."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import lightgbm as lgb
import optuna
import pytest
import redis
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from batch.training.parameters import save_parameters
from batch.tuning.tune import COMPARED, DEFAULTS
from contract.keys import Keys
from contract.settings import Settings
from tests.support.batch import execute, live_run, live_values, make_network, run_here, start_batch
from tests.support.evaluation import load_database

OTHER_LIKES = """
    UPDATE recs.interactions SET post_id = 101 + (post_id - 101 + 7) % 40
    WHERE action = 'like' AND happened_at > '{}'
"""
LIKES_OF_FEW = """
    DELETE FROM recs.interactions
    WHERE action = 'like' AND user_id > 25 AND happened_at > '{}' AND happened_at <= '{}'
"""


class Tuning:
    """A small network, the command line on it, and the files that tuning writes."""

    def __init__(self, database_url: str, redis_url: str, model_dir: Path) -> None:
        self.servers: dict[str, Any] = {
            "database_url": database_url,
            "redis_url": redis_url,
            "model_dir": model_dir,
        }
        self.file = model_dir / "parameters-control.json"
        self.journal = model_dir / "tuning" / "control.journal"

    def batch(self, *arguments: str, **environment: str) -> CompletedProcess[str]:
        """Run a command to its end."""
        return run_here(*arguments, **self.servers, **environment)

    def tune(self, trials: int) -> CompletedProcess[str]:
        """Tune with a number of trials; it must succeed."""
        done = self.batch("tune", "--trials", str(trials))
        assert done.returncode == 0, done.stderr
        return done

    @property
    def studies(self) -> list[list[FrozenTrial]]:
        """The complete trials of each study in the journal."""
        complete = (TrialState.COMPLETE,)
        return [
            optuna.load_study(study_name=name, storage=self._storage).get_trials(True, complete)
            for name in self.names
        ]

    @property
    def names(self) -> list[str]:
        """The names of the studies in the journal."""
        return [found.study_name for found in self._storage.get_all_studies()]

    @property
    def _storage(self) -> optuna.storages.JournalStorage:
        return optuna.storages.JournalStorage(JournalFileBackend(str(self.journal)))

    @property
    def saved(self) -> dict[str, Any]:
        """The content of the file of parameters."""
        found: dict[str, Any] = json.loads(self.file.read_text())
        return found


@pytest.fixture
def tuning(database_url: str, redis_url: str, tmp_path: Path) -> Tuning:
    make_network(database_url, users=200, interactions=4_000)
    return Tuning(database_url, redis_url, tmp_path / "models")


def test_tuning_keeps_the_best_of_its_trials_and_what_it_was_measured_on(tuning: Tuning) -> None:
    done = tuning.tune(4)
    ((default, *tried),) = tuning.studies
    best = max(tried, key=lambda trial: trial.value or 0.0)
    assert default.params == DEFAULTS
    assert len(tried) == 4
    assert best.value is not None
    assert default.value is not None
    assert best.value > default.value + best.user_attrs["standard_error"] > default.value
    assert tuning.saved["variant"] == "control"
    assert tuning.saved["parameters"] == pytest.approx(best.params, rel=1e-3)
    measured = tuning.saved["measured"]
    assert measured["trials"] == 5
    assert measured["tuning"]["ndcg_at_10"]["default"] == pytest.approx(default.value, abs=1e-6)
    assert measured["tuning"]["ndcg_at_10"]["tuned"] == pytest.approx(best.value, abs=1e-6)
    assert measured["tuning"]["until"] == measured["holdout"]["from"]
    assert str(measured["holdout"]["ndcg_at_10"]["tuned"]) in done.stdout
    assert str(tuning.file) in done.stdout
    assert done.stderr.count("tune control: trial") == 4


def test_figures_are_those_of_evaluate_for_the_same_parameters_and_period(tuning: Tuning) -> None:
    recipe = {"OVERNIGHT_RECIPE": "liked"}
    assert tuning.batch("tune", "--trials", "2", **recipe).returncode == 0
    measured = tuning.saved["measured"]
    assert measured["recipe"] == "liked"
    for name, parameters in (("tuned", tuning.saved["parameters"]), ("default", DEFAULTS)):
        save_parameters("control", Settings.of(model_dir=str(tuning.file.parent)), parameters, {})
        for part in ("tuning", "holdout"):
            until = measured[part]["until"]
            done = tuning.batch("evaluate", "--variant", "control", "--as-of", until, "--json", **recipe)
            assert done.returncode == 0, done.stderr
            of_model = json.loads(done.stdout)["control"]
            for metric in measured[part].keys() & set(COMPARED):
                expected = of_model[f"full_catalogue_{metric}"]
                assert measured[part][metric][name] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("lacks", ["tuning", "holdout"])
def test_too_few_users_to_judge_end_tuning_before_its_search(
    tuning: Tuning, database_url: str, lacks: str
) -> None:
    split = load_database(database_url).split
    start, end = split.holdout_start, split.cutoff
    if lacks == "tuning":
        earlier = load_database(database_url, as_of=start).split
        start, end = earlier.holdout_start, earlier.cutoff
    execute(database_url, LIKES_OF_FEW.format(start, end))
    done = tuning.batch("tune", "--trials", "1")
    assert done.returncode == 1
    message = done.stderr.splitlines()[-1]
    assert message.startswith(f"error: from {start.isoformat()} to {end.isoformat()} only ")
    assert "users liked a post that they had not liked before, of 30 needed" in message
    assert "trial 1" not in done.stderr
    assert not tuning.journal.exists()
    assert not tuning.file.exists()


def test_a_study_by_log_loss_is_not_continued(tuning: Tuning) -> None:
    tuning.journal.parent.mkdir(parents=True)
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(tuning.journal)))
    old = optuna.create_study(study_name="control-0123456789abcdef", storage=storage)
    old.add_trial(optuna.trial.create_trial(value=0.4))
    done = tuning.tune(1)
    by_name = dict(zip(tuning.names, tuning.studies, strict=True))
    assert "starting a new study" in done.stderr
    assert [trial.value for trial in by_name.pop("control-0123456789abcdef")] == [0.4]
    (default, tried), *others = by_name.values()
    assert not others
    assert default.params == DEFAULTS
    assert default.user_attrs == {"difference": 0, "standard_error": 0}
    assert tried.value is not None
    assert default.value is not None
    assert tried.user_attrs["difference"] == pytest.approx(tried.value - default.value)


def test_a_second_tuning_of_the_same_data_goes_on_with_the_first(tuning: Tuning) -> None:
    tuning.tune(2)
    again = tuning.tune(2)
    (trials,) = tuning.studies
    assert "continuing the study" in again.stderr
    assert len(trials) == 5
    assert len({json.dumps(trial.params) for trial in trials}) == 5


def test_the_same_data_and_seed_give_the_same_trials(tuning: Tuning, tmp_path: Path) -> None:
    elsewhere = Tuning(**(tuning.servers | {"model_dir": tmp_path / "elsewhere"}))
    tuning.tune(2)
    elsewhere.tune(2)
    ((*here,),), ((*there,),) = tuning.studies, elsewhere.studies
    assert [(t.params, t.value) for t in here] == [(t.params, t.value) for t in there]


def test_other_data_start_a_study_afresh_that_tries_what_was_kept(tuning: Tuning, database_url: str) -> None:
    tuning.tune(3)
    kept = tuning.saved["parameters"]
    execute(database_url, "DELETE FROM recs.interactions WHERE user_id = 1")
    again = tuning.tune(1)
    first, second = tuning.studies
    assert "starting a new study" in again.stderr
    assert len(first) == 4
    assert [trial.params for trial in second] == [DEFAULTS, kept]


def test_labels_of_the_holdout_have_no_part_in_tuning(tuning: Tuning, database_url: str) -> None:
    tuning.tune(3)
    first = tuning.saved["measured"]
    execute(database_url, OTHER_LIKES.format(first["holdout"]["from"]))
    done = tuning.batch("tune", "--trials", "1")
    (trials,) = tuning.studies
    assert "continuing the study" in done.stderr
    assert len(trials) == 5
    assert first["tuning"]["ndcg_at_10"]["default"] == pytest.approx(trials[0].value, abs=1e-6)


def test_labels_that_tuning_is_judged_by_make_a_difference(tuning: Tuning, database_url: str) -> None:
    tuning.tune(1)
    (trials,) = tuning.studies
    earlier = load_database(database_url, as_of=load_database(database_url).split.holdout_start)
    execute(database_url, OTHER_LIKES.format(earlier.split.holdout_start))
    tuning.tune(1)
    _, others = tuning.studies
    assert others[0].value != trials[0].value


def test_an_interrupted_tuning_keeps_what_it_found(tuning: Tuning) -> None:
    with start_batch("tune", "--trials", "100000", **tuning.servers) as process:
        assert process.stderr is not None
        default = 0.0
        for line in process.stderr:
            if found := re.search(r"judge_defaults: .*ndcg_at_10 ([\d.]+)", line):
                default = float(found[1])
            if (found := re.search(r"trial \d+ of .* best ([\d.]+)", line)) and float(found[1]) > default:
                break
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=60)
    assert process.returncode == 1
    assert rest.splitlines()[-1].startswith("error: stopped by SIGINT")
    (trials,) = tuning.studies
    best = max(trials, key=lambda trial: trial.value or 0.0)
    assert tuning.saved["parameters"] == pytest.approx(best.params, rel=1e-3)
    assert tuning.saved["measured"]["holdout"] is None
    tuning.tune(1)
    assert len(tuning.studies[0]) == len(trials) + 1


def test_where_nothing_beats_the_defaults_nothing_is_kept(tuning: Tuning) -> None:
    save_parameters("control", Settings.of(model_dir=str(tuning.file.parent)), DEFAULTS, {})
    before = tuning.file.read_text()
    done = tuning.tune(1)
    assert "no trial beats the defaults by more than one standard error; nothing is saved" in done.stdout
    assert "delete it to go back" in done.stderr
    assert tuning.file.read_text() == before


def test_the_next_run_uses_tuned_parameters_and_records_them(
    tuning: Tuning, redis_client: redis.Redis
) -> None:
    parameters = {"num_iterations": 57, "num_leaves": 9}
    save_parameters("control", Settings.of(model_dir=str(tuning.file.parent)), parameters, {})
    for variant, wanted, trees in (("control", parameters, 57), ("test", {}, DEFAULTS["num_iterations"])):
        done = tuning.batch("run", "--variant", variant)
        assert done.returncode == 0, done.stderr
        run_id = live_run(redis_client, variant)
        manifest = json.loads(str(redis_client.get(Keys().manifest(str(run_id)))))
        model = lgb.Booster(model_file=tuning.file.parent / str(run_id) / "model.txt")
        assert manifest["tuned_parameters"] == wanted
        assert model.num_trees() == trees


def test_a_broken_file_of_parameters_stops_a_run_and_what_is_live_stays(
    tuning: Tuning, redis_client: redis.Redis
) -> None:
    assert tuning.batch("run", "--variant", "control").returncode == 0
    before = live_values(redis_client)
    tuning.file.write_text('{"variant": "control", "parameters": {"device_type": "gpu"}}')
    for command in ("run", "tune"):
        done = tuning.batch(command, "--variant", "control")
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].startswith(f"error: {tuning.file}: names 'device_type'")
    assert live_values(redis_client) == before


def test_a_journal_that_cannot_be_read_is_named(tuning: Tuning) -> None:
    tuning.journal.parent.mkdir(parents=True)
    tuning.journal.write_text('{"op_code": 0}\n{"broken\n{"op_code": 0}\n')
    done = tuning.batch("tune", "--trials", "1")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: {tuning.journal} is broken")


def test_a_folder_that_cannot_be_written_is_named(tuning: Tuning) -> None:
    tuning.file.parent.mkdir()
    tuning.journal.parent.write_text("a file where the folder should be")
    done = tuning.batch("tune", "--trials", "1")
    assert done.returncode == 1
    assert f"cannot store trials in {tuning.journal}" in done.stderr.splitlines()[-1]
