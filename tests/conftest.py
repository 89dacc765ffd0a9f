"""System tools that tests need: listed once where they are missing, and a failure in CI."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import settings

from tests.small import Small

# No deadline: one slow example on a busy machine says nothing about the code.
settings.register_profile("contbatch", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("contbatch")

_missing: dict[str, int] = {}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        tools = [tool for mark in item.iter_markers("needs") for tool in mark.args if not shutil.which(tool)]
        for tool in tools:
            _missing[tool] = _missing.get(tool, 0) + 1
        if tools:
            item.add_marker(pytest.mark.skip(reason=f"not run: needs {', '.join(tools)} on the PATH"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for tool, count in sorted(_missing.items()):
        terminalreporter.write_line(f"NOT RUN: {count} tests need {tool}, which is not on the PATH", red=True)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """In CI a test that did not run has not passed."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and exitstatus == pytest.ExitCode.OK and reporter and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return Path(__file__).parents[1]


@pytest.fixture(scope="session")
def ratings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files in the form of MovieLens 100k: 400 ratings by 10 users of 12 items, invented."""
    folder = tmp_path_factory.mktemp("ml-100k")
    users = [f"{user}\t{20 + user}\t{'FM'[user % 2]}\tartist\t0" for user in range(10)]
    items = [f"{item}\tTitle\t1990\t{'Drama Comedy' if item % 2 else 'Action'}" for item in range(12)]
    lines = [f"{row * 7 % 10}\t{row * 5 % 12}\t{1 + row * 3 % 5}.0\t{880_000_000 + row * 2}" for row in range(400)]
    for name, header, rows in (("user", "u", users), ("item", "i", items), ("inter", "r", lines)):
        (folder / f"ml-100k.{name}").write_text("\n".join([header, *rows]) + "\n")
    return folder


@pytest.fixture
def small() -> Small:
    return Small()
