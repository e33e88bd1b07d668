"""Prints the requirements of this project and one of its extras, or of a dependency group, for `pip install -r`.

`python tools/requirements.py dev` prints them as declared, `python tools/requirements.py dev --floors` with each lower
bound as the version to install: the oldest set that the declarations allow. torch stays as declared there, so that the
one at hand is taken, and so do tools that have no bound.

pip can install a project's dependencies only together with the project, and the project needs them to build without
isolation.
"""

import re
import sys
import tomllib
from pathlib import Path

PYPROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
OWN = f"{PROJECT['name']}["


def requirements(extra: str) -> list[str]:
    """Returns the requirements of `extra` and of the extras of this project that it names."""
    found = []
    for requirement in PROJECT["optional-dependencies"][extra]:
        if requirement.startswith(OWN):
            for name in requirement.removeprefix(OWN).rstrip("]").split(","):
                found += requirements(name)
        else:
            found.append(requirement)
    return found


def floor(requirement: str) -> str:
    """Returns a requirement that takes the oldest version which `requirement` allows."""
    return requirement if requirement.startswith("torch>") else re.sub(r">=\s*([\w.]+)", r"==\1", requirement)


if __name__ == "__main__":
    group = PYPROJECT["dependency-groups"].get(sys.argv[1])
    declared = group or [*PROJECT["dependencies"], *requirements(sys.argv[1])]
    print("\n".join(map(floor, declared) if "--floors" in sys.argv[2:] else declared))
