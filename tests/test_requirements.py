"""requirements*.txt and pyproject.toml ask for the same, and requirements.lock pins it."""

import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {
    "requirements.txt": ("demo", "vtab"),
    "requirements-language.txt": ("demo", "vtab", "language"),
    "requirements-tfds.txt": ("demo", "vtab", "prepare"),
    "requirements-dev.txt": ("dev",),
}


def lines(name):
    return [text for line in (ROOT / name).read_text().splitlines() if (text := line.partition("#")[0].strip())]


def of_file(name):
    """The requirements of a file, and of the files it includes."""
    included = [one for line in lines(name) if line.startswith("-r ") for one in of_file(line.removeprefix("-r "))]
    return included + [Requirement(line) for line in lines(name) if not line.startswith("-r ")]


def of_extras(names):
    """The requirements of the core and of extras, and of the extras that these include."""
    required = [Requirement(line) for line in PROJECT["dependencies"]]
    for name in names:
        for requirement in map(Requirement, PROJECT["optional-dependencies"][name]):
            is_own = requirement.name == PROJECT["name"]
            required += of_extras(sorted(requirement.extras)) if is_own else [requirement]
    return required


def bounds(requirements):
    return {(canonicalize_name(one.name), frozenset(one.extras), str(one.specifier)) for one in requirements}


@pytest.mark.parametrize("name", EXTRAS)
def test_requirements_are_those_of_pyproject(name):
    required = bounds(of_file(name))
    assert required == bounds(of_extras(EXTRAS[name]))
    assert len({package for package, *_ in required}) == len(required)  # no package with two bounds


def test_every_file_of_requirements_is_compared():
    assert {path.name for path in ROOT.glob("requirements*.txt")} == EXTRAS.keys()


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt", "requirements-language.txt"])
def test_every_requirement_is_pinned_within_its_bounds(name):
    pinned = dict(line.split("==") for line in lines("requirements.lock"))
    wanted = of_file(name)
    assert wanted
    for one in wanted:
        assert one.specifier.contains(pinned[canonicalize_name(one.name)]), one
