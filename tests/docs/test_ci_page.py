"""The workflows of docs/ci.md are ones that a server reads: YAML, with jobs and steps that each do one thing."""

import re
import shlex

import pytest
import yaml
from support.project import PROJECT

PAGE = (PROJECT / "docs" / "ci.md").read_text(encoding="utf-8")
GITHUB, GITLAB = [yaml.safe_load(text) for text in re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)]
STEPS = GITHUB["jobs"]["export"]["steps"]


def options(command):
    """The options of a command of the package, with their values."""
    words = shlex.split(command)
    return {word: value for word, value in zip(words, [*words[1:], ""], strict=True) if word.startswith("--")}


def test_every_step_does_one_thing():
    assert {"name", "jobs", "permissions"} <= set(GITHUB)
    assert GITHUB[True]  # YAML takes the key `on` for true
    assert all(("uses" in step) != ("run" in step) for step in STEPS)
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+@v\d+", step["uses"]) for step in STEPS if "uses" in step)


@pytest.mark.parametrize("step", [step for step in STEPS if "run" in step and "--junit" in step["run"]], ids=str)
def test_each_check_writes_where_the_page_and_the_artifacts_are(step):
    said = options(step["run"])
    assert said["--summary"] == "$GITHUB_STEP_SUMMARY"
    kept = [step["with"]["path"].split() for step in STEPS if step.get("if") == "always()"]
    assert said["--junit"].split("/")[0] in kept[0]


def test_gitlab_reads_what_is_written():
    command = GITLAB["export"]["script"][-1]
    assert options(command)["--junit"] == "results/export.xml"
    assert GITLAB["export"]["artifacts"]["reports"]["junit"] == "results/*.xml"
