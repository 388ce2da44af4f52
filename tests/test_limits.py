"""The limits of the house, read from the syntax tree of every file: small files, small functions, no back doors."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "src").rglob("*.py"))
TEXTS = sorted(
    path
    for pattern in ("src/**/*", "tests/**/*", "docs/**/*", "examples/**/*", "benchmarks/**/*", ".ci/*", "*")
    for path in ROOT.glob(pattern)
    if path.suffix in (".py", ".md", ".css", ".js", ".txt", ".toml", ".yaml", ".json", "")
    if path.is_file() and "sensorium.egg-info" not in path.parts
)
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_PARAMETERS = 400, 50, 6
TUNNELS = {"resumable": "hands pydantic's bounds (gt=, ge=, le=) on to pydantic.Field, which checks them"}

Function = ast.FunctionDef | ast.AsyncFunctionDef
Check = Callable[[str, str], Iterator[str]]


@lru_cache(maxsize=1)  # all checks of one file, then those of the next
def nodes(text: str) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(ast.parse(text)))


def functions(text: str) -> Iterator[Function]:
    return (node for node in nodes(text) if isinstance(node, Function))


def long_files(name: str, text: str) -> Iterator[str]:
    lines = len(text.splitlines())
    if lines > MAX_FILE_LINES:
        yield f"{name}: {lines} lines; at most {MAX_FILE_LINES}"


def long_functions(name: str, text: str) -> Iterator[str]:
    for function in functions(text):
        lines = (function.end_lineno or 0) - function.lineno + 1
        if lines > MAX_FUNCTION_LINES:
            yield f"{name}:{function.lineno}: {function.name} has {lines} lines; at most {MAX_FUNCTION_LINES}"


def many_parameters(name: str, text: str) -> Iterator[str]:
    if Path(name).name.startswith("cli"):  # one parameter is one option of the command line
        return
    for function in functions(text):
        given = function.args
        names = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs) if a.arg not in ("self", "cls")]
        if len(names) > MAX_PARAMETERS:
            yield f"{name}:{function.lineno}: {function.name} has {len(names)} parameters; at most {MAX_PARAMETERS}"


def tunnels(name: str, text: str) -> Iterator[str]:
    for function in functions(text):
        if function.args.kwarg and function.name not in TUNNELS:
            yield f"{name}:{function.lineno}: {function.name} takes **{function.args.kwarg.arg}; name the parameters"


def guessed_attributes(name: str, text: str) -> Iterator[str]:
    for node in nodes(text):
        if isinstance(node, ast.Name) and node.id == "hasattr":
            yield f"{name}:{node.lineno}: hasattr; say in a type what there is"


def blind_handlers(name: str, text: str) -> Iterator[str]:
    """One that tidies up and ends with a plain ``raise`` hides nothing."""
    for node in nodes(text):
        if isinstance(node, ast.ExceptHandler) and not (isinstance(node.body[-1], ast.Raise) and not node.body[-1].exc):
            caught = {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)} if node.type else {"everything"}
            if caught & {"Exception", "BaseException", "everything"}:
                yield f"{name}:{node.lineno}: catches {', '.join(sorted(caught))}; name the errors that can be mended"


def unfinished(name: str, text: str) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), start=1):
        if re.search(r"\b(TO" + r"DO|FIX" + r"ME|X" + r"XX)\b", line):
            yield f"{name}:{number}: unfinished work; do it or open an issue"


def own_paths(name: str, text: str) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), start=1):
        if found := re.search(r"(?<![\w./])/(?:work|root|home/\w+|opt)/", line):
            yield f"{name}:{number}: {found[0]} is a path of one machine"


CHANGES_FILES = re.compile(
    "rename|unlink|remove|rmdir|mkdir|makedirs|rmtree|link|hardlink_to|symlink|symlink_to|touch|write_text|write_bytes|"
    "fsync|ftruncate|copy2|copyfile|copytree|mkdtemp|mkstemp|save_file"
)


def past_the_disk(name: str, text: str) -> Iterator[str]:
    """Whatever changes files goes through ``sensorium.files``, where a test can kill the process or fill the disk."""
    if not name.startswith("src/sensorium/") or name in PAST_THE_DISK:
        return
    for node in nodes(text):
        if not isinstance(node, ast.Call):
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        owner = node.func.value if isinstance(node.func, ast.Attribute) else None
        ours = isinstance(node.func, ast.Name)  # a function of that name from `sensorium.files`
        modes = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        opens = called == "open" and any(re.fullmatch(r"[rbt]*[wax+][bt+]*|r[bt]*\+[bt]*", mode) for mode in modes)
        replaces = called == "replace" and owner is not None and len(node.args) == 1 and not node.keywords
        if opens or replaces or (CHANGES_FILES.fullmatch(called) and not ours and not _of_a_list(node)):
            yield f"{name}:{node.lineno}: {called} changes files; use sensorium.files"


def _of_a_list(node: ast.Call) -> bool:
    """``stages.remove(x)``, as opposed to ``os.remove(x)``."""
    assert isinstance(node.func, ast.Attribute)
    return node.func.attr == "remove" and getattr(node.func.value, "id", "") != "os"


PAST_THE_DISK = (
    "src/sensorium/files.py",
    "src/sensorium/docs_config.py",  # for developers: writes the one page of documentation
    "src/sensorium/engine/check_memory.py",  # a switch of the kernel
)

BROKEN: list[tuple[Check, str]] = [
    (long_files, "x = 1\n" * 401),
    (long_functions, "class A:\n    def f():\n" + "        x = 1\n" * 50),
    (many_parameters, "def f(a, b, /, c, d, *, e, f, g): ..."),
    (tunnels, "async def f(**options): ..."),
    (guessed_attributes, "x = hasattr(y, 'z')"),
    (guessed_attributes, "x = filter(hasattr, y)"),
    (blind_handlers, "try: ...\nexcept: ..."),
    (blind_handlers, "try: ...\nexcept Exception: ..."),
    (blind_handlers, "try: ...\nexcept (OSError, BaseException) as error: ..."),
    (blind_handlers, "try: ...\nexcept Exception as error:\n    raise ValueError from error"),
    (unfinished, "x = 1  # TO" + "DO later"),
    (own_paths, "path = '/wo" + "rk/data'"),
    (past_the_disk, "path.open('wb')"),
    (past_the_disk, "open(path, 'a+')"),
    (past_the_disk, "path.replace(target)"),
    (past_the_disk, "shutil.rmtree(folder)"),
    (past_the_disk, "os.remove(path)"),
    (past_the_disk, "path.write_text('x')"),
]
ALLOWED: list[tuple[Check, str]] = [
    (long_files, "x = 1\n" * 400),
    (long_functions, "def f():\n" + "    x = 1\n" * 49),
    (many_parameters, "class A:\n    def f(self, a, b, c, d, e, f, *rest): ..."),
    (tunnels, "def resumable(default, **bounds): ..."),
    (blind_handlers, "try: ...\nexcept (OSError, errors.Exceptional): ..."),
    (blind_handlers, "try: ...\nexcept BaseException:\n    close()\n    raise"),
    (own_paths, "path = 'frame/work/data'"),
    (past_the_disk, "path.open('rb')"),
    (past_the_disk, "text.replace('a', 'w')"),
    (past_the_disk, "remove(path)"),
    (past_the_disk, "open_file(path, 'wb')"),
]
CHECKS = list(dict.fromkeys(check for check, _ in BROKEN))
OVER_ALL_TEXTS = (unfinished, own_paths)


@pytest.fixture(scope="module")
def found() -> dict[Check, list[str]]:
    """What each check says of the files that it is for."""
    assert len(SOURCES) > 20
    assert set(SOURCES) < set(TEXTS)
    said: dict[Check, list[str]] = {check: [] for check in CHECKS}
    for path in TEXTS:
        name, text = str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
        for check in CHECKS if path in SOURCES else OVER_ALL_TEXTS:
            said[check] += check(name, text)
    return said


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_sources_keep_the_limit(check: Check, found: dict[Check, list[str]]) -> None:
    assert not found[check], "\n" + "\n".join(found[check])


@pytest.mark.parametrize(("check", "text"), BROKEN, ids=[check.__name__ for check, _ in BROKEN])
def test_a_broken_limit_is_found(check: Check, text: str) -> None:
    assert list(check("src/sensorium/bad.py", text))


@pytest.mark.parametrize(("check", "text"), ALLOWED, ids=[check.__name__ for check, _ in ALLOWED])
def test_what_is_allowed_is_not_found(check: Check, text: str) -> None:
    assert not list(check("src/sensorium/good.py", text))


def test_the_command_line_may_have_an_option_a_parameter() -> None:
    text = "def f(a, b, c, d, e, f, g): ..."
    assert not list(many_parameters("src/sensorium/cli_data.py", text))
    assert list(many_parameters("src/sensorium/demo.py", text))


def test_every_exception_to_the_limits_is_still_needed() -> None:
    defined = {function.name for path in SOURCES for function in functions(path.read_text(encoding="utf-8"))}
    assert TUNNELS.keys() <= defined
