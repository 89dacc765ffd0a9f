"""The package is what its files say it is."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib import import_module, metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

PARTS = ("pipelines", "templates", "transforms")


@pytest.fixture(scope="module")
def project(root: Path) -> dict:
    return tomllib.loads((root / "pyproject.toml").read_text())


def pins(lock: Path) -> dict[str, str]:
    return dict(re.findall(r"^([A-Za-z0-9_.-]+)==(\S+)", lock.read_text(), re.M))


def test_the_package_list_is_the_folders(root: Path, project: dict) -> None:
    folders = {path.parent for part in PARTS for path in (root / part).rglob("__init__.py")}
    found = {".".join(("contbatch", *folder.relative_to(root).parts)) for folder in folders}
    assert set(project["tool"]["setuptools"]["packages"]) == found


def test_every_part_is_typed(root: Path) -> None:
    assert [part for part in PARTS if not (root / part / "py.typed").is_file()] == []


def test_locks_hold_what_the_project_asks_for(root: Path, project: dict) -> None:
    extras = project["project"]["optional-dependencies"]
    groups = project["dependency-groups"]["dev"]
    core = project["project"]["dependencies"]
    every = [*core, *(item for items in extras.values() for item in items), *groups]
    for lock, wanted in (("demo", core), ("dev", every)):
        held = pins(root / "requirements" / f"{lock}.lock")
        for requirement in map(Requirement, wanted):
            if requirement.name != "contbatch":
                assert requirement.specifier.contains(held[requirement.name]), (lock, str(requirement))


def test_the_demo_runs_on_the_versions_that_are_tested(root: Path) -> None:
    demo, dev = (pins(root / "requirements" / f"{name}.lock") for name in ("demo", "dev"))
    assert {name: dev.get(name) for name in demo} == demo


@pytest.mark.parametrize("lock", ["demo", "dev", "data", "tools", "ci"])
def test_everything_that_is_installed_has_a_hash(root: Path, lock: str) -> None:
    text = (root / "requirements" / f"{lock}.lock").read_text()
    entries = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.M)[1:]
    assert entries
    assert [entry for entry in entries if "--hash=sha256:" not in entry] == []


def test_no_file_names_a_registry(root: Path) -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True, check=False)  # noqa: S607
    files = [root / name for name in listed.stdout.split()]
    assert files, "not a git checkout"
    host = re.compile(r"py" + r"pi\.(org|python)|pythonhosted" + r"\.org|index" + r"-url|proxy\.golang\.org")
    found = [path.name for path in files if path.is_file() and host.search(path.read_text(errors="ignore"))]
    assert found == []


@pytest.mark.parametrize(
    ("module", "distribution"),
    [
        ("apache_beam", "apache-beam"),
        ("torch", "torch"),
        ("tfx_bsl", "tfx-bsl"),
        ("google.cloud.pubsub_v1", "google-cloud-pubsub"),
        ("fastavro", "fastavro"),
        ("jsonschema", "jsonschema"),
        ("jinja2", "jinja2"),
    ],
)
def test_each_declared_package_is_installed_and_imports(root: Path, module: str, distribution: str) -> None:
    import_module(module)
    # torch's version has a local part (+cpu) that the lock does not name
    version = metadata.version(distribution).split("+")[0]
    assert version == pins(root / "requirements" / "dev.lock")[distribution].split("+")[0]


def test_python_versions_agree(project: dict) -> None:
    (low, high) = (3, 11), (3, 14)
    assert project["project"]["requires-python"] == f">={low[0]}.{low[1]},<{high[0]}.{high[1]}"
    assert low <= sys.version_info[:2] < high
