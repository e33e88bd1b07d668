"""The manifest in C++: what is not the file that was proven fails and is named, in both programs and the library."""

import json
import re
import shutil

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from jumpout_export.export.publish import export_onnx


@pytest.fixture(scope="session")
def proven(replay, tmp_path_factory):
    """Two exports as they were published, with weights beside them."""
    folders = []
    for seed in range(2):
        folder = tmp_path_factory.mktemp(f"proven{seed}")
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 64))
        assert export_onnx(model, folder / "model.onnx", torch.randn(4, 6), external_data=True, golden=folder)
        folders.append(folder)
    return folders


@pytest.fixture
def copy(proven, tmp_path):
    """One of them to break."""
    return shutil.copytree(proven[0], tmp_path / "copy")


def failed(replay, folder, match, *words):
    """Both programs end with 1 and name the file."""
    for program in (replay.program, replay.load):
        done = replay.run(program, folder / "model.onnx", *words, "--json")
        assert done.returncode == 1, done
        assert re.search(match, done.stderr), done.stderr
        report = json.loads(done.stdout)
        assert [(check["name"], check["verdict"]) for check in report["checks"]] == [("cpu/all/manifest", "fail")]
        assert report["checks"][0]["note"] in done.stderr


def test_what_was_published_passes(replay, proven):
    for program in (replay.program, replay.load):
        done = replay.run(program, proven[0] / "model.onnx", "--json")
        assert done.returncode == 0, done
        check = json.loads(done.stdout)["checks"][0]
        assert (check["name"].split("/")[-1], check["verdict"]) == ("manifest", "pass")
        assert check["note"] == "model, weights and golden data are those that the manifest names"


def test_changed_weights_beside_the_model_are_named(replay, copy):
    (weights,) = copy.glob("*.data")
    weights.write_bytes(weights.read_bytes() + bytes(1))
    failed(replay, copy, rf"{re.escape(str(weights))}: it is not the file that was proven: its sha256 is not that in")


def test_a_changed_constant_that_no_golden_data_reaches_is_named(replay, copy):
    path = copy / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer.append(numpy_helper.from_array(np.ones(1, "f4"), "nobody reads it"))
    path.write_bytes(model.SerializeToString())
    failed(replay, copy, rf"{re.escape(str(path))}: it is not the file that was proven")
    assert replay.run(replay.program, path, "--without-manifest").returncode == 0


def test_golden_data_of_another_export_is_named(replay, proven, copy):
    failed(replay, copy, r"proven1\d*/test_data_set_0/input_0\.pb: it is not the file", "--data", proven[1])
    shutil.rmtree(copy / "test_data_set_0")
    shutil.copytree(proven[1] / "test_data_set_0", copy / "test_data_set_0")
    failed(replay, copy, r"copy/test_data_set_0/input_0\.pb: it is not the file that was proven")


def test_a_changed_golden_output_within_tolerance_is_named(replay, copy):
    file = copy / "test_data_set_0" / "output_0.pb"
    tensor = onnx.load_tensor(file)
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] = np.nextafter(values.flat[0], np.float32(np.inf))
    replay.write_tensor(file, numpy_helper.from_array(values, tensor.name))
    failed(replay, copy, rf"{re.escape(str(file))}: it is not the file that was proven")
    assert replay.run(replay.program, copy / "model.onnx", "--without-manifest").returncode == 0


def test_a_manifest_that_is_missing_fails_unless_that_is_asked_for(replay, copy):
    (copy / "model.manifest.json").unlink()
    failed(replay, copy, r"model\.manifest\.json: there is no manifest, so nobody knows .*, or pass --without-manifest")
    for program in (replay.program, replay.load):
        done = replay.run(program, copy / "model.onnx", "--without-manifest")
        assert done.returncode == 0
        assert "manifest: not looked at, --without-manifest\n" in done.stdout
        check = json.loads(replay.run(program, copy / "model.onnx", "--without-manifest", "--json").stdout)["checks"][0]
        assert (check["verdict"], check["required"]) == ("not_run", False)


def test_a_program_that_uses_the_library_loads_only_what_was_proven(replay, sanitized, copy):
    program = replay.sanitized / "replay-model"
    assert "load: fine" in replay.run(program, copy / "model.onnx").stdout
    (copy / "model.manifest.json").unlink()
    assert "load: 1 " in replay.run(program, copy / "model.onnx").stdout


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: "", "it is no JSON"),
        (lambda text: text[:-4], "it is no JSON"),
        (lambda text: "[]", "it is no manifest"),
        (lambda text: text.replace('"manifest_version": 1', '"manifest_version": 2'), "its version is 2, this program"),
        (lambda text: re.sub(r'"model": "\w', '"model": "', text), "a digest in it is no sha256"),
        (lambda text: re.sub(r'"golden": \{[^}]*\}', '"golden": []', text), "its `golden` is no table of digests"),
        (lambda text: text.replace('"kind"', '"model": "", "kind"'), "it says `model` twice"),
        (lambda text: "[" * 100000, "its values lie too deep in each other"),
        (lambda text: text + " " * (1 << 20), "it is larger than a manifest is"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_manifest_that_is_none_fails(replay, copy, change, reason):
    file = copy / "model.manifest.json"
    file.write_text(change(file.read_text()))
    failed(replay, copy, rf"{re.escape(str(file))}: the manifest cannot be read: .*{reason}")


def test_a_manifest_of_more_or_fewer_files_fails(replay, copy):
    file = copy / "model.manifest.json"
    document = json.loads(file.read_text())
    (name,) = document["data"]
    file.write_text(json.dumps({**document, "data": {}}))
    failed(replay, copy, rf"{name}: it is not in the manifest model\.manifest\.json")
    file.write_text(json.dumps({**document, "data": {**document["data"], "more.data": "0" * 64}}))
    failed(replay, copy, "it names weights in more.data, which the model does not use")
    file.write_text(json.dumps({**document, "golden": {}}))
    failed(replay, copy, r"input_0\.pb: it is not in the manifest model\.manifest\.json")


# https://csrc.nist.gov/projects/cryptographic-algorithm-validation-program, SHA-256 examples of FIPS 180
NIST = {
    b"": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    b"abc": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq": (
        "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"
    ),
    b"a" * 1000000: "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0",
}


@pytest.mark.parametrize(("message", "digest"), NIST.items(), ids=[f"{len(message)} bytes" for message in NIST])
@pytest.mark.parametrize("piece", [1, 63, 64, 65, 1 << 20])
def test_the_hash_is_that_of_the_standard(replay, sanitized, message, digest, piece):
    done = replay.run(replay.sanitized / "replay-parts", "sha256", piece, input=message.decode())
    assert done.stdout == digest + "\n"


@pytest.mark.parametrize(
    ("text", "names", "said"),
    [
        ('{"a": {"b": "c"}}', ["a", "b"], "1 c"),
        (' { "a" : [1, {"x": "]"}, "}"] , "b":-1.5e+3 } ', ["b"], "2 -1.5e+3"),
        ('{"a": [1, {"x": "]"}, "}"]}', ["a"], '2 [1, {"x": "]"}, "}"]'),
        ('"\\"\\\\\\/\\b\\u0041\\u00e9\\u20ac\\ud83d\\ude00"', [], '1 "\\/\bA\u00e9\u20ac\U0001f600'),
        ("{}", ["a", "b"], "2 "),
        ("true", [], "2 true"),
        ("", [], "error: it is no JSON"),
        ('{"a" 1}', [], "error: it is no JSON"),
        ('{"a": 1,}', [], "error: it is no JSON"),
        ('{"a": 1} x', [], "error: it is no JSON"),
        ("[1, 2", [], "error: it is no JSON"),
        ('"\n"', [], "error: it is no JSON"),
        ('"\\x"', [], "error: it is no JSON"),
        ('"\\ud800"', [], "error: it is no JSON"),
        ('"\\u12', [], "error: it is no JSON"),
        ('{"a": 1, "a": 2}', [], "error: it says `a` twice"),
    ],
)
def test_json_is_read_as_it_is_written(replay, sanitized, text, names, said):
    done = replay.run(replay.sanitized / "replay-parts", "json", *names, input=text)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", said + "\n")
