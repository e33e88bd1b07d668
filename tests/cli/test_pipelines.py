"""What a pipeline reads of a command: JUnit XML and the lines on its job's page, and none of an older run."""

import os
import sys
from types import SimpleNamespace

import junitparser
import pytest
from support.commands import KEPT, calibrated, random_file

from jumpout_export import render
from jumpout_export.cli import ready
from jumpout_export.exit_codes import FAILED, NOT_VERIFIED, PASSED, WRONG_USAGE

pytestmark = pytest.mark.integration

PAGES = ("--junit", "out/j.xml", "--summary", "out/page.md")
MODEL = "cli_factories:model"


def cases():
    return [case for suite in junitparser.JUnitXml.fromfile("out/j.xml") for case in suite]


def red():
    return [case.name for case in cases() if case.is_failure or case.is_error]


def test_an_export_its_inspection_and_its_verification_are_test_cases(folder, run):
    code, _, err = run("export", MODEL, "m.onnx", "--input-shape", "4,1,8,8", *PAGES)
    assert code == PASSED, err
    assert red() == []
    assert len(cases()) > 20
    assert {"verdict", "file/random nodes"} <= {case.name for case in cases()}
    for command in (("inspect", "m.onnx"), ("verify", "m.onnx", "--against", MODEL, "--input-shape", "4,1,8,8")):
        code, _, err = run(*command, *PAGES)
        assert code == PASSED, err
        assert {case.classname for case in cases()} == {f"jumpout-export.{command[0]}"}
    page = (folder / "out" / "page.md").read_text()
    assert [line for line in page.splitlines() if line.startswith("## ")] == [
        *("## ONNX export", "## ONNX inspection", "## ONNX verification")
    ]


def test_a_file_that_draws_fails_in_both(folder, run):
    random_file("random.onnx")
    code, _, _ = run("inspect", "random.onnx", *PAGES)
    assert code == FAILED
    assert red() == ["verdict", "file/random nodes"]
    assert "| `file/random nodes` | ✗ fail | 1 | 0 |" in (folder / "out" / "page.md").read_text()
    code, _, _ = run("fold", "random.onnx", "f.onnx", *PAGES)
    assert code == FAILED
    assert "verdict" in red()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--samples", "300", "--weights", "good.safetensors"], PASSED),
        ([], FAILED),
        (["--batch-size", "5", "--samples", "5"], NOT_VERIFIED),
    ],
    ids=["ok", "drift", "inconclusive"],
)
def test_layers_are_test_cases(folder, run, arguments, code):
    calibrated("good.safetensors")
    actual, _, err = run("check-bn", MODEL, "--data", "data.npz", *arguments, *PAGES)
    assert actual == code, err
    (verdict, layer) = cases()
    assert (verdict.name, layer.name) == ("verdict", "1")
    assert (verdict.is_failure, verdict.is_error) == (code == FAILED, code == NOT_VERIFIED)
    assert (layer.is_failure, layer.is_skipped) == (code == FAILED, code == NOT_VERIFIED)


def test_a_provider_that_cannot_be_used_is_skipped_and_not_green(folder, run, monkeypatch):
    from jumpout_export.runtime.providers import PROVIDERS

    monkeypatch.setattr(type(PROVIDERS["cuda"]), "explain_unusable", lambda self: "no GPU here")
    run("export", MODEL, "m.onnx", "--input-shape", "4,1,8,8")
    arguments = ("--against", MODEL, "--input-shape", "4,1,8,8", "--providers", "cpu,cuda")
    code, _, _ = run("verify", "m.onnx", *arguments, *PAGES)
    assert code == NOT_VERIFIED
    assert red() == ["verdict"]
    skipped = {case.name: case.result[0].message for case in cases() if case.is_skipped}
    assert "no GPU here" in skipped["cuda"]


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (("check-bn", MODEL, "--data", "missing.npz"), WRONG_USAGE),
        (("export", MODEL, "m.onnx", "--input-shape", "4,1,8,8", "--providers", "tpu"), WRONG_USAGE),
        (("inspect", "missing.onnx"), WRONG_USAGE),
    ],
    ids=["check-bn", "export", "inspect"],
)
def test_a_command_without_a_verdict_leaves_no_older_test_cases(folder, run, command, code):
    (folder / "out").mkdir()
    (folder / "out" / "j.xml").write_text("<testsuites/>")
    assert run(*command, *PAGES)[0] == code
    assert os.listdir("out") == []


def test_what_cannot_be_written_is_said_before_the_work(folder, run, monkeypatch):
    check = ("check-bn", "cli_factories:marks", "--data", "data.npz")
    (folder / "file").write_text("")
    (folder / "weights").write_text("precious")
    os.mkfifo(folder / "pipe.xml")
    for option, said in (
        (("--junit", "weights"), "--junit weights must end in .xml: a file that is there is replaced"),
        (("--junit", "file/j.xml"), "--junit file/j.xml cannot be written: "),
        (("--junit", "pipe.xml"), "--junit pipe.xml is a device, a pipe or a folder, which is not replaced"),
        (("--summary", "."), "--summary . must be a file, it is a folder"),
        (("--summary", "file/page.md"), "--summary file/page.md cannot be written: "),
    ):
        code, _, err = run(*check, *option)
        assert code == WRONG_USAGE
        assert f"error: {said}" in err
    monkeypatch.setattr(
        ready, "os", SimpleNamespace(W_OK=os.W_OK, access=lambda path, mode: (path.name, mode) != ("weights", os.W_OK))
    )
    code, _, err = run(*check, "--summary", "weights")
    assert (code, err) == (WRONG_USAGE, "error: --summary weights cannot be written: it is protected\n")
    assert (folder / "weights").read_text() == "precious"
    assert not (folder / "ran").exists()


def test_what_cannot_be_written_in_the_end_loses_nothing(folder, run, monkeypatch):
    def full(report, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(render, "write_junit", full)
    random_file("random.onnx")
    code, out, err = run("inspect", "random.onnx", *PAGES)
    assert code == FAILED
    assert "FAIL" in out
    assert err == f"warning: --junit out/j.xml cannot be written: No space left on device; {KEPT}\n"
    assert "FAIL" in (folder / "out" / "page.md").read_text()


def test_neither_needs_a_package_of_an_extra(folder, run, monkeypatch):
    for package in ("jinja2", "matplotlib", "junitparser"):
        monkeypatch.setitem(sys.modules, package, None)
    random_file("random.onnx")
    code, _, err = run("inspect", "random.onnx", *PAGES)
    assert (code, err) == (FAILED, "")
