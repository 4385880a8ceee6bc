"""The pinned versions are of what the requirements ask for."""

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests import ROOT


def lines(name):
    return [line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt", "requirements-language.txt"])
def test_every_requirement_is_pinned_within_its_bounds(name):
    pinned = dict(line.split("==") for line in lines("requirements.lock") if line)
    wanted = [Requirement(line) for line in lines(name) if line and not line.startswith("-r")]
    assert wanted
    for one in wanted:
        assert one.specifier.contains(pinned[canonicalize_name(one.name)]), one
