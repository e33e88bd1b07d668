"""CMake, run on projects of their own."""

import os
import shutil
import sys
from pathlib import Path


def cmake_program():
    """CMake, of this Python or of the system."""
    return shutil.which("cmake", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")


def configure(replay, project, *settings):
    """Configures a project where no python3 has a wheel; returns CMake and what it said."""
    cmake = cmake_program()
    environment = {**os.environ, "PATH": "/usr/bin:/bin"}
    return cmake, replay.run(cmake, "-S", project, "-B", project / "build", *settings, env=environment)


def built(replay, project, *settings):
    """Configures and builds a copy of a project, in which nothing else of the repository is."""
    cmake, done = configure(replay, project, *settings)
    assert done.returncode == 0, done.stderr
    done = replay.run(cmake, "--build", project / "build")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in done.stdout + done.stderr


def copy(folder, target):
    """A copy of a folder, where nothing else of the repository is."""
    return Path(shutil.copytree(folder, target))
