"""What answers at once imports nothing heavy: help, version, wrong usage, completion; `inspect` needs no torch."""

import os
import shlex
import signal
import subprocess
import sys

import pytest
import typer
from support.commands import process, saved, signal_at

import jumpout_export
from jumpout_export.cli.app import app
from jumpout_export.cli.options import Dtype
from jumpout_export.exit_codes import NOT_VERIFIED, PASSED, WRONG_USAGE
from jumpout_export.verify.precision import dtypes

HEAVY = {"torch", "numpy", "rich", "onnx", "onnxruntime", "onnx_ir", "onnxscript", "jinja2", "matplotlib"}
HEAVY |= {"securesystemslib", "cryptography", "in_toto_attestation", "google.protobuf"}
# Printed by the process that does the work as it ends.
IMPORTED = "atexit.register(lambda: print('IMPORTED', *sys.modules, file=sys.stderr))"
FRESH = [sys.executable]
GROUP = typer.main.get_command(app)


def command(arguments, **options):
    """A finished process, and the modules that it had imported."""
    done = process(arguments, before=IMPORTED, python=FRESH, **options)
    lines = [line.split()[1:] for line in done.stderr.splitlines() if line.startswith("IMPORTED")]
    assert len(lines) == 1, done.stderr
    return done, set(lines[0])


@pytest.mark.integration
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_imports_nothing_heavy(option):
    done, imported = command([option])
    assert done.returncode == PASSED
    assert done.stdout.startswith("Usage: jumpout-export [OPTIONS] COMMAND")
    assert "--version" in done.stdout
    assert not imported & HEAVY


@pytest.mark.integration
@pytest.mark.parametrize("name", GROUP.commands)
def test_help_of_a_command_imports_nothing_heavy_and_has_an_example(name):
    done, imported = command([name, "-h"])
    assert done.returncode == PASSED
    assert not imported & HEAVY
    *_, title, empty, example = [line.strip() for line in done.stdout.splitlines()]
    assert (title, empty) == ("Example:", "")
    assert example.startswith(f"jumpout-export {name}")


@pytest.mark.parametrize("name", GROUP.commands)
def test_the_example_of_a_command_is_one_that_it_takes(name):
    _, said, *arguments = shlex.split(GROUP.commands[name].epilog.splitlines()[-1])
    assert said == name
    GROUP.commands[name].make_context(name, arguments)


@pytest.mark.parametrize("name", GROUP.commands)
def test_every_option_that_takes_a_value_is_named_for_people(name):
    values = [part for part in GROUP.commands[name].params if part.param_type_name == "option" and not part.is_flag]
    assert [part.name for part in values if part.metavar is None] == []


@pytest.mark.integration
def test_the_version_is_that_of_the_package_and_imports_nothing_heavy():
    done, imported = command(["--version"])
    assert (done.returncode, done.stdout) == (PASSED, f"jumpout-export {jumpout_export.__version__}\n")
    assert not imported & HEAVY


@pytest.mark.integration
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["exprt"], "Error: No such command 'exprt'. Did you mean 'export'?"),
        (["inspect", "--jsn", "m.onnx"], "Error: No such option: --jsn"),
        (["export", "zoo:net"], "Error: Missing argument 'OUT.onnx'."),
        (["check-bn", "zoo:net", "--data", "d", "--samples", "0"], "Error: Invalid value for '--samples'"),
        (["verify", "m.onnx", "--against", "zoo:net", "--seed", "one"], "Error: Invalid value for '--seed'"),
        (["export", "zoo:net", "m.onnx", "--dtype", "fp8"], "Error: Invalid value for '--dtype'"),
    ],
    ids=["command", "option", "argument", "range", "number", "choice"],
)
def test_wrong_usage_imports_nothing_heavy(arguments, message):
    done, imported = command(arguments)
    assert done.returncode == WRONG_USAGE
    assert message in done.stderr
    assert not imported & HEAVY


@pytest.mark.integration
@pytest.mark.parametrize(
    ("words", "answer"),
    [("jumpout-export ins", "inspect"), ("jumpout-export export --tho", "--thorough")],
    ids=["command", "option"],
)
def test_completion_imports_nothing_heavy(words, answer, monkeypatch):
    monkeypatch.setenv("_JUMPOUT_EXPORT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
    done, imported = command([])
    assert (done.returncode, done.stdout.split()) == (PASSED, [answer])
    assert not imported & HEAVY


@pytest.mark.integration
def test_a_heavy_import_is_found():
    done, imported = command(["check-bn", "zoo:net", "--data", "d"])
    assert done.returncode == WRONG_USAGE
    assert imported & HEAVY >= {"torch", "numpy"}


@pytest.mark.integration
@pytest.mark.parametrize("noise", ["Relu", "RandomNormalLike"])
def test_inspect_imports_no_torch(folder, noise):
    saved(f"g (float[2] x) => (float[2] y) {{ y = {noise}(x) }}", folder / "m.onnx")
    done, imported = command(["inspect", "m.onnx", "--report", "r"])
    assert done.returncode == (PASSED if noise == "Relu" else 1)
    assert {"onnx", "onnxruntime"} <= imported
    assert "torch" not in imported
    assert (folder / "r" / "report.html").exists()


def test_what_is_asked_for_a_type_is_what_precisions_are():
    assert {member.value for member in Dtype} == set(dtypes())


@pytest.mark.integration
def test_ctrl_c_while_a_command_imports_torch_is_one_line(folder):
    done = process(
        ["check-bn", "zoo:net", "--data", "d"], before=signal_at(signal.SIGINT, "import", "torch"), python=FRESH
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


@pytest.mark.integration
def test_a_package_that_is_missing_is_one_line_in_a_command(folder):
    done = process(["inspect", "m.onnx"], before="sys.modules['onnx'] = None", python=FRESH)
    assert (done.returncode, done.stdout) == (NOT_VERIFIED, "")
    assert done.stderr.startswith("error: onnx cannot be imported")
    assert done.stderr.count("\n") == 1


@pytest.mark.integration
def test_a_shell_completes_what_the_program_prints_for_it(folder):
    """bash itself asks the program, by the script that `--show-completion` prints."""
    (folder / "jumpout-export").write_text(f"#!{sys.executable}\nfrom jumpout_export.__main__ import main\nmain()\n")
    (folder / "jumpout-export").chmod(0o755)
    # The program asks which shell started it: with a second command that is this one.
    asked = (
        'script=$(jumpout-export --show-completion; exit $?) || exit\neval "$script"\n'
        "COMP_WORDS=(jumpout-export rec); COMP_CWORD=1; _jumpout_export_completion jumpout-export\n"
        'echo "${COMPREPLY[@]}"'
    )
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    shell = subprocess.run(
        ["bash", "-c", asked], env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert (shell.returncode, shell.stderr) == (PASSED, "")
    assert shell.stdout == "recalibrate-bn\n"
