"""Checks of README and docs against the code: each takes the text of its pages and returns what is wrong."""

from __future__ import annotations

import inspect
import json
import logging
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise, takewhile
from pathlib import Path

import click
import flask
import redis
from werkzeug.exceptions import HTTPException

import batch.cli
import console.__main__
import demo.cli
import scheduler.__main__
from batch import files
from batch.alerts.alert import Event
from batch.evaluation.learner import HOLDOUT_MODEL
from batch.gate.rules import RULES
from batch.loading import interaction_store
from batch.loading.schema import OPTIONAL, REQUIRED
from batch.reports.files import REPORT
from batch.training.parameters import parameters_path
from contract import errors
from contract.columns import SCHEMA
from contract.experiment import VARIANTS
from contract.keys import Keys
from contract.settings import Settings
from serving.app import create_app
from serving.telemetry import JsonLines
from tests.support.compose import DASK, SERVICES

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = "docs/reference"
ALL_PAGES = ("README.md", "docs/*.md", "docs/*/*.md")
MAKEFILE = (ROOT / "Makefile").read_text()

CLICK = {
    "batch": batch.cli.cli,
    "scheduler": scheduler.__main__.cli,
    "console": console.__main__.cli,
    "demo": demo.cli.demo,
}


def commands_of(group: click.Group) -> dict[str, click.Command]:
    """Return a group's commands by name, including those that are imported on demand."""
    context = click.Context(group)
    commands = {name: group.get_command(context, name) for name in group.list_commands(context)}
    return {name: command for name, command in commands.items() if command is not None}


def all_commands(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    """Yield a command with its name; for a group, all commands in it, recursively."""
    if not isinstance(command, click.Group):
        yield name, command
        return
    for inner_name, inner in commands_of(command).items():
        yield from all_commands(f"{name} {inner_name}", inner)


Check = Callable[[str], list[str]]

CHECKS: dict[Check, tuple[str, ...]] = {}
"""Check -> the pages that it reads, as patterns of paths."""


def reads(*pages: str) -> Callable[[Check], Check]:
    """Register a check with the pages that it reads."""

    def register(check: Check) -> Check:
        CHECKS[check] = pages
        return check

    return register


def pages_of(*patterns: str) -> list[Path]:
    return sorted(path for pattern in patterns for path in ROOT.glob(pattern))


def text_for(check: Check) -> str:
    """Return the text of all pages that a check reads."""
    return "\n".join(path.read_text() for path in pages_of(*CHECKS[check]))


PLACEHOLDERS = {
    "COMMAND": "true", "FOLDER": "demo", "NUMBER": "1", "POST": "1", "RUN": "20261122T030000Z-control",
    "TEXT": "odd", "TIME": "2026-11-22", "USER": "1", "VARIANT": "control",
}  # fmt: skip
TYPE_OF_COMMAND = {"GET": "string", "SET": "string", "HGET": "hash", "SMEMBERS": "set", "SADD": "set"}
WITHOUT_A_SERVICE = {"up"}

FENCED = re.compile(r"^```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def code(text: str) -> Iterator[list[str]]:
    """Yield the words of every line in a code block, and of every inline code."""
    inline = re.findall(r"`([^`\n]+)`", FENCED.sub("", text))
    for line in [line for block in FENCED.findall(text) for line in block.splitlines()] + inline:
        try:
            words = shlex.split(line.removeprefix("$ "), comments=True)
        except ValueError:  # output of a program, not a command
            words = line.split()
        yield words
        yield from (shlex.split(after) for option, after in pairwise(words) if option == "-c")


def commands(text: str, *start: str) -> Iterator[list[str]]:
    """Yield what follows every occurrence of the starting words, up to the end of the command."""
    for words in code(text):
        plain = [word.removeprefix(".venv/bin/") for word in words]
        for index in range(len(plain)):
            if plain[index : index + len(start)] == list(start):
                rest = plain[index + len(start) :]
                ends = [end for end, word in enumerate(rest) if word in ("|", "&&", "||", ";", "<", ">", "}")]
                yield rest[: ends[0]] if ends else rest


def rows(text: str, head: str) -> list[list[str]]:
    """Return the cells of the table whose first column has this head, without their code marks."""
    table = re.search(rf"^\| {re.escape(head)} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", text, re.MULTILINE)
    if table is None:
        return []
    return [
        [cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in table[1].splitlines()
    ]


def differences(documented: object, in_code: object) -> list[str]:
    return [] if documented == in_code else [f"{documented} in the docs, {in_code} in the code"]


@reads(*ALL_PAGES)
def check_make(text: str) -> list[str]:
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    variables = set(re.findall(r"^([A-Z_]+) \?=", MAKEFILE, re.MULTILINE)) | set(
        re.findall(r"\b([A-Z_]+)=", MAKEFILE)
    )
    used = [words for words in commands(text, "make") if words]
    named = {word.strip("[").partition("=")[0] for words in used for word in words[1:] if "=" in word}
    return [f"no target {words[0]}" for words in used if words[0] not in targets] + sorted(named - variables)


@reads(*ALL_PAGES)
def check_python_commands(text: str) -> list[str]:
    return [
        problem
        for words in commands(text, "python", "-m")
        if words and words[0] in CLICK
        for problem in _command_problems(words[0], [PLACEHOLDERS.get(word, word) for word in words[1:]])
    ] or ([] if any(commands(text, "python", "-m")) else ["no commands at all"])


def _command_problems(module: str, words: list[str]) -> list[str]:
    command: click.Command = CLICK[module]
    while isinstance(command, click.Group):
        if words in ([], ["..."]):  # the group as a whole
            return []
        if words[0] not in commands_of(command):
            return [f"python -m {module} has no command {words[:1]}"]
        command, words = commands_of(command)[words[0]], words[1:]
    try:
        command.make_context(module, words)
    except click.UsageError as error:
        return [f"python -m {module}: {error.format_message()}"]
    return []


@reads(f"{REFERENCE}/commands.md")
def check_command_table(text: str) -> list[str]:
    documented = {
        " ".join(takewhile(str.islower, command.removeprefix("python -m ").split())): set(
            re.findall(r"--[a-z][a-z-]*", meaning)
        )
        for command, meaning in rows(text, "Command")
    }
    declared = {
        name: {
            text
            for option in command.params
            if isinstance(option, click.Option) and not option.hidden
            for text in option.opts
        }
        for module, top in CLICK.items()
        for name, command in all_commands(module, top)
    }
    return differences(documented, declared)


@reads(f"{REFERENCE}/settings.md")
def check_settings(text: str) -> list[str]:
    declared = [[row["env"], row["default"], row["meaning"]] for row in Settings.declared()]
    return differences(rows(text, "Variable"), declared)


@reads(*ALL_PAGES)
def check_setting_names(text: str) -> list[str]:
    known = {row["env"] for row in Settings.declared()} | {"OVERNIGHT_DEMO_DIR"}
    return sorted(set(re.findall(r"\bOVERNIGHT_\w+[A-Z0-9]\b", text)) - known)


def key_types() -> dict[str, str]:
    """Return every key that `Keys` builds, its parameters in capitals, with the type in its docstring."""
    types = {}
    for name, member in inspect.getmembers(Keys):
        builds = inspect.isfunction(member) or isinstance(member, property)
        if builds and not name.startswith("_") and not name.endswith("pattern"):
            value = getattr(Keys(), name)
            key = (
                value
                if isinstance(value, str)
                else value(*map(str.upper, inspect.signature(value).parameters))
            )
            types[key] = str(member.__doc__).partition(":")[0].lower()
    return types


@reads(f"{REFERENCE}/redis-keys.md")
def check_keys(text: str) -> list[str]:
    return differences({row[0]: row[1] for row in rows(text, "Key")}, key_types())


@reads("README.md", "docs/guide.md", "docs/operations.md", f"{REFERENCE}/redis-keys.md")
def check_key_examples(text: str) -> list[str]:
    parameter = r"(VARIANT|RUN_ID|USER_ID|POST_ID)"
    shapes = {re.sub(parameter, r"(?P<\1>[\\w.~%@-]+)", key): kind for key, kind in key_types().items()}
    patterns = {Keys().any_manifest_pattern, Keys().run_pattern("20261121T030000Z-control")}
    used = [words for words in commands(text, "redis-cli") if words]
    wrong = []
    for words in used:
        if "--pattern" in words:
            pattern = words[words.index("--pattern") + 1]
            wrong += [] if pattern in patterns else [f"{pattern} matches no keys of ours"]
            continue
        while words[0].startswith("-"):
            words = words[2:] if words[0] in ("-u", "--user") else words[1:]
        command, *arguments = words
        if not arguments:  # no key, or a key from a pipe
            continue
        key = arguments[0]
        matches = [(match, kind) for shape, kind in shapes.items() if (match := re.fullmatch(shape, key))]
        if [kind for _, kind in matches] != [TYPE_OF_COMMAND[command]]:
            wrong.append(f"{command} {key} reads no key of ours")
        wrong += [key for match, _ in matches if match.groupdict().get("VARIANT", "test") not in VARIANTS]
    return wrong if used else ["no examples of keys"]


@reads(f"{REFERENCE}/api.md")
def check_routes(text: str) -> list[str]:
    app = create_app(Settings(), redis.Redis())
    documented = re.findall(r"`GET (/[^`]*)`", "\n".join(re.findall(r"^## .*$", text, re.MULTILINE)))
    return differences(sorted(documented), sorted(rule.rule for rule in app.url_map.iter_rules()))


@reads("README.md", f"{REFERENCE}/api.md")
def check_requests(text: str) -> list[str]:
    app = create_app(Settings(), redis.Redis())
    requests = re.findall(r"curl -s '?(http://127.0.0.1:8000)(/[^\s'?]*)", text)
    wrong = []
    for _, path in requests:
        try:
            app.url_map.bind("127.0.0.1").match(path)
        except HTTPException as error:
            wrong.append(f"{path}: {error}")
    return wrong if requests else ["no examples of requests"]


@reads(f"{REFERENCE}/commands.md")
def check_exit_codes(text: str) -> list[str]:
    codes = sorted(str(code) for name, code in vars(errors).items() if name.startswith("EXIT_"))
    return differences([row[0] for row in rows(text, "Code")], codes)


@reads(f"{REFERENCE}/views.md")
def check_columns(text: str) -> list[str]:
    known = {
        f"{SCHEMA}.{view}.{column}"
        for views in (REQUIRED, OPTIONAL)
        for view, types in views.items()
        for column in types
    }
    first = " ".join(row[0] for row in rows(text, "Column"))
    return differences(set(re.findall(rf"{SCHEMA}\.\w+\.\w+", first)), known)


@reads(f"{REFERENCE}/gate.md")
def check_gate_rules(text: str) -> list[str]:
    documented = [name for row in rows(text, "Rule") for name in re.findall(r"\w+", row[0])]
    return differences(sorted(documented), sorted(rule.name for rule in RULES))


@reads(f"{REFERENCE}/alerts.md")
def check_alerts(text: str) -> list[str]:
    (example,) = re.findall(r"^```json\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    fields = [row[0] for row in rows(text, "Alert field")]
    events = {row[0] for row in rows(text, "Event")}
    return differences(fields, list(json.loads(example))) + differences(events, {str(e) for e in Event})


@reads(f"{REFERENCE}/logs.md")
def check_log_fields(text: str) -> list[str]:
    try:
        raise ValueError
    except ValueError:
        raised = sys.exc_info()
    record = logging.LogRecord("serving", logging.INFO, __file__, 1, "text", None, raised)
    with flask.Flask("logs").test_request_context():
        flask.g.request_id = "id"
        written = set(json.loads(JsonLines().format(record)))
    return differences({row[0] for row in rows(text, "Log field")}, written)


@reads(f"{REFERENCE}/files.md")
def check_files(text: str) -> list[str]:
    model, store = "OVERNIGHT_MODEL_DIR", "OVERNIGHT_STORE_DIR"
    names = (files.FOREST, files.COLUMNS, files.POSTS, files.USERS)
    run = [*names, files.REFRESH_STATE, REPORT, f"{HOLDOUT_MODEL}/"]
    written = {f"{model}/RUN/{name}" for name in run} | {f"{store}/RUN/{interaction_store.FILE}"}
    written |= {f"{model}/{parameters_path('VARIANT', Settings()).name}"}
    return differences({row[0] for row in rows(text, "File")}, written)


@reads("docs/architecture.md")
def check_folders(text: str) -> list[str]:
    listed = re.findall(r"^( *)([\w.]+)/ +\S", text, re.MULTILINE)
    folders = {name for indent, name in listed if not indent}
    in_batch = {name for indent, name in listed if indent}
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    wrong = [name for name in folders if not (ROOT / name).is_dir()] + sorted(packages - folders)
    inner = {path.parent.name for path in ROOT.glob("batch/*/__init__.py")}
    return wrong + differences(in_batch, inner)


@reads(*ALL_PAGES)
def check_paths(text: str) -> list[str]:
    """Return the paths of the tree in code marks that do not exist."""
    folders = "batch|contract|serving|scheduler|demo|benchmarks|tests|docs|deploy"
    named = re.findall(rf"`((?:{folders})/[\w./-]+)`", text)
    return sorted({path for path in named if not (ROOT / path).exists()})


def wrong_links(text: str, folder: Path) -> list[str]:
    """Return the links of a page in a folder that lead to no file, or to no heading of it."""
    wrong = []
    for target in re.findall(r"\]\(([^)]+)\)", text):
        name, _, anchor = target.partition("#")
        if "://" in target:
            continue
        if name and not (folder / name).is_file():
            wrong.append(target)
        elif anchor:
            page = (folder / name).read_text() if name else text
            wrong += [] if anchor in anchors(page) else [target]
    return wrong


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@reads(*ALL_PAGES)
def check_compose(text: str) -> list[str]:
    used = []
    for words in commands(text, "docker", "compose"):
        while words[:1] == ["-f"] and (ROOT / words[1]).is_file():
            words = words[2:]
        used.append(words)
    return [
        f"docker compose {' '.join(words)}"
        for words in used
        if words
        and words[0] not in WITHOUT_A_SERVICE
        and not set(words) & (set(SERVICES) | set(DASK["services"]))
    ]
