"""`--json` prints the report of the Python package: it fits the schema, is read by the same class, and is rendered."""

import hashlib
import io
import json
import re
import shlex

import jsonschema
import numpy as np
import onnxruntime
import pytest
from pydantic import TypeAdapter
from rich.console import Console
from support.project import PROJECT

from jumpout_export.render.writers.terminal import render_terminal
from jumpout_export.report import Report, VerifyReport

VALIDATOR = jsonschema.Draft202012Validator(json.loads((PROJECT / "docs" / "report.schema.json").read_text()))


def read(done):
    """The report that was printed, which must fit the schema and come back as it is."""
    document = json.loads(done.stdout)
    VALIDATOR.validate(document)
    report = TypeAdapter(Report).validate_json(done.stdout)
    assert type(report) is VerifyReport
    assert json.loads(report.model_dump_json()) == document  # every field is there
    return report


def rendered(report):
    text = io.StringIO()
    render_terminal(report, Console(file=text, width=200))
    return text.getvalue()


def verdicts(report):
    return {check.name: check.verdict for check in report.checks}


def test_a_pass(replay, digits):
    model = digits / "model.onnx"
    done = replay(model, "--json", "--threads", 2, "--repeat", 3)
    report = read(done)
    assert (done.returncode, done.stderr, bool(report)) == (0, "", True)
    assert verdicts(report) == {
        "cpu/all/manifest": "pass",
        "cpu/all/nodes": "pass",
        "cpu/all/repeatable": "pass",
        "cpu/all/test_data_set_0/output_0/worst error": "pass",
    }
    assert report.providers["cpu"].model_dump() == {"verdict": "pass", "reason": ""}
    assert (report.path, report.sha256) == (str(model), hashlib.sha256(model.read_bytes()).hexdigest())
    assert report.environment["command"] == f"jumpout-replay {model} --json --threads 2 --repeat 3"
    assert report.environment["onnxruntime"] == onnxruntime.__version__
    assert report.environment["threads"] == "2"
    (note,) = report.notes
    assert note.startswith("latency: ")
    assert note.endswith(" ms, median of 3 runs")
    assert "PASS" in rendered(report)
    assert "`model.onnx` equals the PyTorch model: 4 checks passed on cpu." in rendered(report)


def test_a_fail(replay, tmp_path):
    ones = np.ones((2, 2), "f4")
    tolerance = "cap=0.05 median=1 sizes=1,1 limits=0.1,0"
    model = replay.crafted(tmp_path, replay.from_array(ones + 1), replay.from_array(ones), tolerance)
    done = replay(model, "--json")
    report = read(done)
    assert (done.returncode, done.stderr, bool(report)) == (1, "", False)
    name = "cpu/all/test_data_set_0/output_0/worst error"
    (check,) = [check for check in report.checks if check.verdict == "fail"]
    assert (check.name, check.measured, check.limit) == (name, 1, 0)
    note = "output `y` float32[2,2], index [0,1]; max abs 1, max rel 1"
    assert check.note == note
    assert report.providers["cpu"].model_dump() == {"verdict": "fail", "reason": f"{name}: {note}"}
    assert f"1 of 4 checks failed, first `{name}`, measured 1, limit 0" in " ".join(rendered(report).split())


def test_what_cannot_be_measured_is_no_number(replay, tmp_path):
    values = np.array([1, np.inf], "f4")
    model = replay.crafted(tmp_path, replay.from_array(values), replay.from_array(values))
    check = read(replay(model, "--json")).checks[-1]
    assert (check.measured, check.limit, check.verdict) == (None, None, "fail")
    assert check.note == "output `y` float32[2]: 1 values are NaN or infinite, 1 golden"


def test_an_error_beyond_all_numbers_is_written_as_the_schema_has_it(replay, tmp_path):
    golden, got = np.array([-1.5e308]), np.array([1.5e308])
    model = replay.crafted(
        tmp_path, replay.from_array(got), replay.from_array(golden), "cap=0.05 median=1 sizes=1 limits=1"
    )
    done = replay(model, "--json")
    assert '"measured": "Infinity"' in done.stdout
    assert read(done).checks[-1].measured == float("inf")


def test_a_model_that_cannot_run_its_own_data(replay, broken):
    tensor = replay.from_array(np.full(6, 99))
    tensor.name = "index"
    replay.write_tensor(broken / "test_data_set_0" / "input_1.pb", tensor)
    done = replay(broken / "model.onnx", "--json")
    report = read(done)
    assert done.returncode == 1
    assert verdicts(report) == {"cpu/all/outputs": "fail"}
    assert "ONNX Runtime cannot run it: " in report.providers["cpu"].reason
    assert report.providers["cpu"].reason.split(": ", 1)[1] in done.stderr


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this ONNX Runtime has the provider"
)
def test_not_run(replay, mixed):
    done = replay(mixed / "model.onnx", "--provider", "cuda", "--json")
    report = read(done)
    assert (done.returncode, bool(report), verdicts(report)) == (3, False, {"cuda": "not_run"})
    assert report.providers["cuda"].verdict == "not_run"
    assert "has no CUDAExecutionProvider; build against one that has" in report.providers["cuda"].reason
    assert done.stderr == f"jumpout-replay: {report.providers['cuda'].reason}\n"
    assert "NOT VERIFIED" in rendered(report)


@pytest.mark.parametrize("program", ["program", "load"])
def test_an_error_is_a_report_too(replay, tmp_path, program):
    path = getattr(replay, program)
    for words, reason in (
        ([tmp_path / "no.onnx"], f"{tmp_path}/no.onnx: there is no such file"),
        ([tmp_path / "no.onnx", "--gpu"], "there is no option --gpu; --help lists them"),
        ([], "a model is missing; --help shows the usage"),
    ):
        done = replay.run(path, "--json", *words)
        report = read(done)
        assert (done.returncode, bool(report), verdicts(report)) == (2, False, {"cpu": "not_run"})
        assert report.providers["cpu"].model_dump() == {"verdict": "not_run", "reason": reason}
        assert done.stderr == f"{path.name}: {reason}\n"
        assert report.sha256 == ""
        assert shlex.split(report.environment["command"]) == [path.name, "--json", *map(str, words)]
        assert "NOT VERIFIED" in rendered(report)


def test_a_load_is_a_report_too(replay, digits):
    report = read(replay.run(replay.load, digits / "model.onnx", "--json", "--requests", 20))
    assert report.environment["command"] == f"jumpout-load {digits}/model.onnx --json --requests 20"
    assert "PASS" in rendered(report)
    assert "cpu/load/latency p99" in {check.name for check in report.checks}


def test_the_hash_is_right_for_files_of_every_length(replay, tmp_path):
    """In blocks of 64 bytes, the last of which holds the length if there is room."""
    one = replay.from_array(np.ones(1, "f4"))
    model = replay.crafted(tmp_path, one, replay.from_array(np.ones(1, "f4")))
    content = model.read_bytes()
    lengths = set()
    for more in range(64):
        model.write_bytes(content + b"\x32" + bytes([more]) + b"x" * more)  # the field doc_string
        lengths.add(len(model.read_bytes()) % 64)
        assert read(replay(model, "--json", "--repeat", 1)).sha256 == hashlib.sha256(model.read_bytes()).hexdigest()
    assert len(lengths) == 64


def test_names_of_any_bytes_and_paths_of_any_letters_are_json(replay, digits, tmp_path):
    """Bytes that are no UTF-8, control characters and quotes in a file's name; a name in a shell is quoted."""
    folder = tmp_path / "a 'b' \"c\" \\ \n é \U0001f600"
    folder.mkdir()
    model = folder / "m.onnx"
    model.write_bytes((digits / "model.onnx").read_bytes())
    report = read(replay(model, "--data", digits, "--json"))
    assert report.path == str(model)
    assert shlex.split(report.environment["command"]) == ["jumpout-replay", str(model), "--data", str(digits), "--json"]
    wrong = [b"\xff", b"\xc0\xaf", b"\xe0\x80\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe9", b"\xf0\x9f\x98"]
    for raw in wrong:
        (tmp_path / "plain").mkdir(exist_ok=True)
        name = bytes(tmp_path / "plain") + b"/" + raw + b".onnx"
        with open(name, "wb") as file:
            file.write(model.read_bytes())
        done = replay("--json", "--data", digits, name.decode("utf-8", "surrogateescape"))
        path = re.sub("\ufffd+", "\ufffd", read(done).path)  # one in the place of each byte, or of several
        assert path == re.sub("\ufffd+", "\ufffd", name.decode("utf-8", "replace")), raw
