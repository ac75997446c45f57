"""The variables in docker-compose.yml and .env.example are the settings; the image holds the code alone."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from contract.settings import Settings
from tests.support.compose import COMPOSE_FILE, DASK_FILE, DOCKERFILE, OF_OURS, PACKAGES, ROOT, SERVICES

SETTING_ENVS = {setting["env"] for setting in Settings.declared()}
ENV_OF_FIELD = {(setting["section"], setting["name"]): setting["env"] for setting in Settings.declared()}

EXAMPLE = (ROOT / ".env.example").read_text()
ASSIGNMENT = re.compile(r'^(?:# )?([A-Z_]+)="?([^"\n]*)"?$', re.MULTILINE)
VARIABLE = re.compile(r"\$\{(\w+)")
COPIED = [source.rstrip("/") for source in re.findall(r"^COPY (\S+) \S+$", DOCKERFILE, re.MULTILINE)]


@pytest.mark.parametrize("name", OF_OURS)
def test_a_service_is_given_settings_only(name: str) -> None:
    assert set(SERVICES[name]["environment"]) <= SETTING_ENVS


def test_the_images_of_others_are_given_their_own_variables_only() -> None:
    assert set(SERVICES["postgres"]["environment"]) == {"POSTGRES_USER", "POSTGRES_DB", "POSTGRES_PASSWORD"}
    assert set(SERVICES["redis"]["environment"]) == {
        "REDIS_SERVING_PASSWORD",
        "REDIS_BATCH_PASSWORD",
        "REDIS_CONSOLE_PASSWORD",
        "REDIS_WORKER_PASSWORD",
        "REDISCLI_AUTH",
    }


def settings_read(package: str) -> set[str]:
    """Return the environment variables of the settings that a package's code reads."""
    found = set()
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                section = ast.unparse(node.value).rpartition("settings.")[2].lstrip("_")
                field = section, node.attr
                found |= {ENV_OF_FIELD[field]} if field in ENV_OF_FIELD else set()
    return found


@pytest.mark.parametrize("name", OF_OURS)
def test_a_service_is_given_every_setting_its_code_reads_and_no_other(name: str) -> None:
    read = set().union(*(settings_read(package) for package in PACKAGES[name]))
    assert set(SERVICES[name]["environment"]) == read | {"OVERNIGHT_LOG_LEVEL"}


def test_together_the_services_are_given_every_setting() -> None:
    assert set().union(*(service["environment"] for service in OF_OURS.values())) == SETTING_ENVS


PASSWORDS = ("POSTGRES_PASSWORD", "REDIS_SERVING_PASSWORD", "REDIS_BATCH_PASSWORD", "CONSOLE_STORE_PASSWORD")


def test_the_passwords_must_be_set() -> None:
    text = COMPOSE_FILE.read_text()
    for name in PASSWORDS:
        uses = re.findall(rf"\${{{name}(.*?)}}", text)
        assert len(uses) >= 2
        assert all(use.startswith(":?") for use in uses)


def test_the_example_names_every_variable_that_compose_takes_from_outside() -> None:
    environments = [service["environment"] for service in OF_OURS.values()]
    bare = {name for environment in environments for name, value in environment.items() if value is None}
    files = COMPOSE_FILE.read_text() + DASK_FILE.read_text()
    taken = bare | set(VARIABLE.findall(files)) | {"COMPOSE_PROFILES"}
    named = [name for name, _ in ASSIGNMENT.findall(EXAMPLE)]
    assert sorted(named) == sorted(taken | SETTING_ENVS)


@pytest.mark.parametrize("setting", Settings.declared(), ids=lambda setting: setting["env"])
def test_the_example_gives_every_setting_with_its_meaning(setting: dict[str, Any]) -> None:
    naming = re.compile(rf"^# {setting['env']}=", re.MULTILINE)
    (paragraph,) = [text for text in EXAMPLE.split("\n\n") if naming.search(text)]
    assert paragraph.startswith(f"# {setting['meaning']}\n")


def test_the_values_in_the_example_are_the_defaults() -> None:
    values = {name: value for name, value in ASSIGNMENT.findall(EXAMPLE) if name in SETTING_ENVS}
    assert len(values) == len(SETTING_ENVS)
    assert Settings.from_environment(values) == Settings()


def test_a_shell_reads_urls_with_any_options_from_the_example(tmp_path: Path) -> None:
    names = [name for name in SETTING_ENVS if name.endswith("_URL")]
    lines = EXAMPLE.splitlines()
    for name in names:
        (row,) = [row for row, line in enumerate(lines) if line.startswith(f"# {name}=")]
        lines[row] = re.sub(r'="?([^"]*)("?)$', r"=\2postgresql://h/d?a=1&b=2 3\2", lines[row])[2:]
    (tmp_path / ".env").write_text("\n".join(lines))
    script = "set -a; . ./.env; " + "".join(f'echo "${name}"; ' for name in names)
    done = subprocess.run(
        ["sh", "-c", script], cwd=tmp_path, env={}, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["postgresql://h/d?a=1&b=2 3"] * len(names)
    assert done.stderr == ""


def test_a_copy_of_the_example_asks_for_the_passwords_and_changes_no_setting() -> None:
    set_lines = [line for line in EXAMPLE.splitlines() if line and not line.startswith("#")]
    assert set_lines == [*(f"{name}=" for name in PASSWORDS), "COMPOSE_PROFILES=postgres"]
    assert SERVICES["postgres"]["profiles"] == ["postgres"]


def test_the_image_holds_the_five_packages_and_nothing_else() -> None:
    assert sorted(COPIED) == [
        "batch",
        "console",
        "contract",
        "requirements-dask.txt",
        "requirements.txt",
        "scheduler",
        "serving",
    ]
    assert all((ROOT / source).exists() for source in COPIED)
    assert len(COPIED) == DOCKERFILE.count("COPY")


def test_the_build_is_shown_only_what_it_copies() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert rules[0] == "*"
    let_in = [rule.removeprefix("!").rstrip("/") for rule in rules if rule.startswith("!")]
    assert sorted(let_in) == sorted(COPIED)


def test_the_image_runs_as_the_user_that_compose_names() -> None:
    (user,) = re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE)
    assert {service["user"] for service in OF_OURS.values()} == {user}


def test_models_and_stores_are_kept_on_volumes_that_belong_to_the_user() -> None:
    (folder,) = re.findall(r"^WORKDIR (\S+)$", DOCKERFILE, re.MULTILINE)
    for volume, variable in (("models", "OVERNIGHT_MODEL_DIR"), ("stores", "OVERNIGHT_STORE_DIR")):
        for name in ("scheduler", "batch"):
            assert SERVICES[name]["environment"][variable] == f"{folder}/{volume}"
            assert f"{volume}:{folder}/{volume}" in SERVICES[name]["volumes"]
    assert "install --directory --owner overnight --group overnight models stores" in DOCKERFILE
