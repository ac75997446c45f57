"""Checks of README and the guide against the code: each takes the text and tells what in it is wrong."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Callable, Iterator
from itertools import pairwise, takewhile
from pathlib import Path

import click
import redis
from werkzeug.exceptions import HTTPException

import batch.cli
import demo.cli
import scheduler.__main__
from batch.loading.schema import OPTIONAL, REQUIRED
from contract import errors
from contract.columns import SCHEMA
from contract.experiment import VARIANTS
from contract.keys import Keys
from contract.settings import Settings
from serving.app import create_app
from tests.support.compose import SERVICES

ROOT = Path(__file__).resolve().parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()

CLICK = {"batch": batch.cli.cli, "scheduler": scheduler.__main__.cli, "demo": demo.cli.demo}


def commands_of(group: click.Group) -> dict[str, click.Command]:
    """Return a group's commands by name, those that are loaded late among them."""
    context = click.Context(group)
    found = {name: group.get_command(context, name) for name in group.list_commands(context)}
    return {name: command for name, command in found.items() if command is not None}


def all_commands(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    """Yield a command by its name, in place of a group all that is in it, however deep."""
    if not isinstance(command, click.Group):
        yield name, command
        return
    for inner, found in commands_of(command).items():
        yield from all_commands(f"{name} {inner}", found)


PLACEHOLDERS = {
    "COMMAND": "true", "FOLDER": "demo", "NUMBER": "1", "POST": "1", "RUN": "20261122T030000Z-control",
    "TEXT": "odd", "TIME": "2026-11-22", "USER": "1", "VARIANT": "control",
}  # fmt: skip
TYPE_OF_COMMAND = {"GET": "string", "SET": "string", "HGET": "hash", "SMEMBERS": "set"}
WITHOUT_A_SERVICE = {"up"}

FENCED = re.compile(r"^```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def code(readme: str) -> Iterator[list[str]]:
    """Yield the words of every line in a block of code, and of every code within a line."""
    inline = re.findall(r"`([^`\n]+)`", FENCED.sub("", readme))
    for line in [line for block in FENCED.findall(readme) for line in block.splitlines()] + inline:
        try:
            words = shlex.split(line.removeprefix("$ "), comments=True)
        except ValueError:  # output of a program, not a command
            words = line.split()
        yield words
        yield from (shlex.split(after) for option, after in pairwise(words) if option == "-c")


def commands(readme: str, *start: str) -> Iterator[list[str]]:
    """Yield what follows every occurrence of the starting words, up to the end of the command."""
    for words in code(readme):
        plain = [word.removeprefix(".venv/bin/") for word in words]
        for place in range(len(plain)):
            if plain[place : place + len(start)] == list(start):
                rest = plain[place + len(start) :]
                ends = [at for at, word in enumerate(rest) if word in ("|", "&&", ";", "<", ">")]
                yield rest[: ends[0]] if ends else rest


def rows(readme: str, head: str) -> list[list[str]]:
    """Return the cells of the table whose first column has this head, without their code marks."""
    table = re.search(rf"^\| {re.escape(head)} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", readme, re.MULTILINE)
    if table is None:
        return []
    return [
        [cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in table[1].splitlines()
    ]


def differences(found: object, wanted: object) -> list[str]:
    return [] if found == wanted else [f"{found} in README, {wanted} in the code"]


def wrong_in_make(readme: str) -> list[str]:
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    variables = set(re.findall(r"^([A-Z]+) \?=", MAKEFILE, re.MULTILINE))
    used = [words for words in commands(readme, "make") if words]
    named = {word.partition("=")[0] for words in used for word in words[1:]}
    return [f"no target {words[0]}" for words in used if words[0] not in targets] + sorted(named - variables)


def wrong_in_python_commands(readme: str) -> list[str]:
    return [
        problem
        for words in commands(readme, "python", "-m")
        if words and words[0] in CLICK
        for problem in _wrong_in_command(words[0], [PLACEHOLDERS.get(word, word) for word in words[1:]])
    ] or ([] if any(commands(readme, "python", "-m")) else ["no commands at all"])


def _wrong_in_command(module: str, words: list[str]) -> list[str]:
    command: click.Command = CLICK[module]
    while isinstance(command, click.Group):
        if not words or words[0] not in commands_of(command):
            return [f"python -m {module} has no command {words[:1]}"]
        command, words = commands_of(command)[words[0]], words[1:]
    try:
        command.make_context(module, words)
    except click.UsageError as error:
        return [f"python -m {module}: {error.format_message()}"]
    return []


def wrong_in_command_table(readme: str) -> list[str]:
    documented = {
        " ".join(takewhile(str.islower, command.removeprefix("python -m ").split())): set(
            re.findall(r"--[a-z][a-z-]*", told)
        )
        for command, told in rows(readme, "Command")
    }
    there = {
        name: {
            text
            for option in command.params
            if isinstance(option, click.Option) and not option.hidden
            for text in option.opts
        }
        for module, top in CLICK.items()
        for name, command in all_commands(module, top)
    }
    return differences(documented, there)


def wrong_in_settings(readme: str) -> list[str]:
    declared = [[row["env"], row["default"], row["meaning"]] for row in Settings.declared()]
    known = {row[0] for row in declared} | {"OVERNIGHT_DEMO_DIR"}
    unknown = set(re.findall(r"\bOVERNIGHT_\w+", readme)) - known
    return differences(rows(readme, "Variable"), declared) + sorted(unknown)


def key_types() -> dict[str, str]:
    """Return every key that `Keys` builds, its parameters in capitals, and the type its docstring tells."""
    found = {}
    for name, member in inspect.getmembers(Keys):
        made = inspect.isfunction(member) or isinstance(member, property)
        if made and not name.startswith("_") and not name.endswith("pattern"):
            value = getattr(Keys(), name)
            key = (
                value
                if isinstance(value, str)
                else value(*map(str.upper, inspect.signature(value).parameters))
            )
            found[key] = str(member.__doc__).partition(":")[0].lower()
    return found


def wrong_in_keys(readme: str) -> list[str]:
    types = key_types()
    parameter = r"(VARIANT|RUN_ID|USER_ID|POST_ID)"
    shapes = {re.sub(parameter, r"(?P<\1>[\\w-]+)", key): kind for key, kind in types.items()}
    wrong = differences({row[0]: row[1] for row in rows(readme, "Key")}, types)
    used = [words for words in commands(readme, "redis-cli") if words]
    for words in used:
        if "--pattern" in words:
            wrong += differences(words[words.index("--pattern") + 1], Keys().any_manifest_pattern)
            continue
        while words[0].startswith("-"):
            words = words[2:] if words[0] in ("-u", "--user") else words[1:]
        command, key = words[0], words[1]
        matches = [(match, kind) for shape, kind in shapes.items() if (match := re.fullmatch(shape, key))]
        if [kind for _, kind in matches] != [TYPE_OF_COMMAND[command]]:
            wrong.append(f"{command} {key} reads no key of ours")
        wrong += [key for match, _ in matches if match.groupdict().get("VARIANT", "test") not in VARIANTS]
    return wrong if used else ["no examples of keys"]


def wrong_in_routes(readme: str) -> list[str]:
    app = create_app(Settings(), redis.Redis())
    documented = re.findall(r"`GET (/[^`]*)`", "\n".join(re.findall(r"^### .*$", readme, re.MULTILINE)))
    wrong = differences(sorted(documented), sorted(rule.rule for rule in app.url_map.iter_rules()))
    asked = re.findall(r"curl -s '?(http://127.0.0.1:8000)(/[^\s'?]*)", readme)
    for _, path in asked:
        try:
            app.url_map.bind("127.0.0.1").match(path)
        except HTTPException as error:
            wrong.append(f"{path}: {error}")
    return wrong if asked else ["no examples of requests"]


def wrong_in_exit_codes(readme: str) -> list[str]:
    codes = sorted(str(code) for name, code in vars(errors).items() if name.startswith("EXIT_"))
    return differences([row[0] for row in rows(readme, "Code")], codes)


def wrong_in_columns(readme: str) -> list[str]:
    known = {
        f"{SCHEMA}.{view}.{column}"
        for views in (REQUIRED, OPTIONAL)
        for view, types in views.items()
        for column in types
    }
    first = " ".join(row[0] for row in rows(readme, "Column"))
    return differences(set(re.findall(rf"{SCHEMA}\.\w+\.\w+", first)), known)


def wrong_in_folders(readme: str) -> list[str]:
    listed = re.findall(r"^([\w.]+)/ +\S", readme, re.MULTILINE)
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    return [name for name in listed if not (ROOT / name).is_dir()] + sorted(packages - set(listed))


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
            other = (folder / name).read_text() if name else text
            wrong += [] if anchor in anchors(other) else [target]
    return wrong


def anchors(text: str) -> set[str]:
    """Return what the headings of a page are linked by."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def wrong_in_compose(readme: str) -> list[str]:
    return [
        f"docker compose {' '.join(words)}"
        for words in commands(readme, "docker", "compose")
        if words and words[0] not in WITHOUT_A_SERVICE and not set(words) & set(SERVICES)
    ]


CHECKS: list[Callable[[str], list[str]]] = [
    check for name, check in list(globals().items()) if name.startswith("wrong_in_")
]
