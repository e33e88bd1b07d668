"""A source tree without the compiled extension says which command builds it; the installed one is complete."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from support.project import PROJECT

import jumpout_export
from jumpout_export import ops

PACKAGE = Path(jumpout_export.__file__).parent
# An editable install answers for the package from everywhere; a user with a plain checkout has none.
WITHOUT_EDITABLE = "import sys; sys.meta_path = [f for f in sys.meta_path if 'ScikitBuild' not in type(f).__name__]; "


@pytest.mark.integration
def test_a_checkout_without_the_extension_names_the_command_that_builds_it(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "jumpout_export", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    code = WITHOUT_EDITABLE + "from jumpout_export import Jumpout"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("jumpout_export.errors.MissingExtensionError: jumpout_export's compiled extension")
    assert "pip install ." in last
    assert "start it from another folder" in last
    code = f"{WITHOUT_EDITABLE} import runpy; runpy.run_module('jumpout_export', run_name='__main__', alter_sys=True)"
    done = subprocess.run(
        [sys.executable, "-c", code, "info"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert done.stderr.startswith("error: jumpout_export's compiled extension")


def test_the_build_says_what_it_is():
    info = ops.build_info()
    source = (PROJECT / "cpp/op/philox.h").read_text()
    assert f"kPhiloxRounds = {info['philox_rounds']};" in source
    assert info["cpu_kernels"] in ("avx512_bf16", "avx512", "avx2", "neon", "scalar")
    assert isinstance(info["cuda"], str)


def test_what_the_package_needs_at_run_time_lies_in_it():
    for file in ("py.typed", "_C.pyi", "render/writers/report.html.j2"):
        assert (PACKAGE / file).is_file(), file


@pytest.mark.integration
def test_an_unknown_instruction_set_is_named():
    code = "import torch, jumpout_export; jumpout_export.jumpout(torch.ones(3))"
    result = subprocess.run(
        [sys.executable, "-c", code], env={"JUMPOUT_CPU_ISA": "mmx"}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert "JUMPOUT_CPU_ISA must be one of" in result.stderr
    assert "scalar on this processor, got mmx" in result.stderr


def unpinned(workflow: str) -> list[str]:
    """The actions of a workflow that are not pinned by the digest of a commit, with the version beside it."""
    return [
        use for use in re.findall(r"uses: *(.*)", workflow) if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v[\d.]+", use)
    ]


def test_every_action_is_pinned_by_its_digest():
    workflows = list((PROJECT / ".github" / "workflows").glob("*.yml"))
    assert len(workflows) >= 3
    assert [use for workflow in workflows for use in unpinned(workflow.read_text(encoding="utf-8"))] == []
    assert unpinned("- uses: actions/checkout@v4") == ["actions/checkout@v4"]


def test_the_version_is_the_same_everywhere():
    version = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    said = [
        *re.findall(r"^version: (.*)$", (PROJECT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE),
        *re.findall(r"VERSION ([\d.]+) LANG", (PROJECT / "cpp/replay/CMakeLists.txt").read_text(encoding="utf-8")),
    ]
    assert said == [version, version]


def test_a_word_for_cuda_that_the_build_does_not_know_is_refused(tmp_path):
    cmake = shutil.which("cmake") or pytest.skip("there is no cmake")
    arguments = [cmake, "-S", str(PROJECT), "-B", str(tmp_path), "-DJUMPOUT_CUDA=off"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "JUMPOUT_CUDA must be AUTO, ON or OFF, got 'off'" in done.stderr
