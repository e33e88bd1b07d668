"""Prints the requirements of this project and one of its extras, one per line, for `pip install -r`.

pip can install a project's dependencies only together with the project, and the project needs them to build without
isolation.
"""

import sys
import tomllib
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
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


print("\n".join([*PROJECT["dependencies"], *requirements(sys.argv[1])]))
