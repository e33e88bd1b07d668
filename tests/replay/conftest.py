"""The C++ programs, exports to replay, and models and golden data made by hand."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from support.project import PROJECT
from torch import nn

from jumpout_export import demo
from jumpout_export.export.publish import export_onnx
from jumpout_export.onnxfile.data import external_files, sha256_of
from jumpout_export.onnxfile.manifest import Manifest, manifest_of
from jumpout_export.report import VerifyReport

EXACT = "cap=0 median=0 sizes=0 limits=0"


class Output:
    """What a check says of one output; `index`, `max_abs` and `max_rel` are None where nothing could be measured."""

    def __init__(self, check):
        self.verdict, self.measured, self.limit = check.verdict, check.measured, check.limit
        match = re.fullmatch(
            r"output `(.*)` (\w+\[[\d,]*\])(?:: (.*)|, index (\S+); max abs (\S+), max rel (\S+))", check.note
        )
        self.name, self.kind, self.problem, self.index, *errors = match.groups()
        self.max_abs, self.max_rel = (error and float(error) for error in errors)


class Replay:
    """The programs, and what the tests do with them."""

    program = PROJECT / "build" / "replay" / "jumpout-replay"
    load = PROJECT / "build" / "replay" / "jumpout-load"
    classify = PROJECT / "build" / "classify" / "classify"
    sanitized = PROJECT / "build" / "replay-sanitize"

    @staticmethod
    def run(*command, **settings):
        """Runs a program as it is, on files as they are."""
        return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, **settings)

    def sign(self, *words, cwd="."):
        """Writes the manifest of the model in a command: most tests change files to see what else finds that."""
        words = [str(word) for word in words]
        data = [Path(cwd, after) for word, after in itertools.pairwise(words) if word == "--data"]
        for model in [Path(cwd, word) for word in words if word.endswith(".onnx")]:
            if model.is_file():
                sign(model, data[0] if data else model.parent)

    def __call__(self, *arguments, program=program, **settings):
        """Runs a program on the files as they are, with a manifest that says so."""
        self.sign(*arguments, cwd=settings.get("cwd", "."))
        return self.run(program, *arguments, **settings)

    def report_of(self, model, *arguments):
        """The report, read with the package's own reader."""
        done = self(model, "--json", *arguments)
        assert done.stderr == ""
        report = VerifyReport.model_validate_json(done.stdout)
        assert report.passed is (done.returncode == 0)
        return report

    def outputs_of(self, model, *arguments):
        """What the report says of each output."""
        checks = self.report_of(model, *arguments).checks
        return [Output(check) for check in checks if check.name.endswith("/worst error")]

    def refused(self, code, match, *arguments, program=program, **settings):
        """No verdict: one line on stderr, nothing on stdout."""
        done = self(*arguments, program=program, **settings)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1), done
        assert re.search(match, done.stderr), done.stderr

    @staticmethod
    def from_array(array):
        return numpy_helper.from_array(np.asarray(array))

    @staticmethod
    def write_tensor(file, tensor):
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(tensor.SerializeToString())

    def crafted(self, folder, got, golden, tolerance=EXACT):
        """A model whose output `y` is the tensor `got`, with the golden output and the tolerance as they are given."""
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
        y = helper.make_tensor_value_info("y", got.data_type, None)
        got.name = "value"
        graph = helper.make_graph([helper.make_node("Identity", ["value"], ["y"])], "g", [x], [y], [got])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        model.metadata_props.add(key="jumpout_export.version", value="of this test")
        model.metadata_props.add(key="jumpout_export.tolerance.y", value=tolerance)
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        golden.name = "y"
        self.write_tensor(folder / "test_data_set_0" / "output_0.pb", golden)
        data = numpy_helper.from_array(np.zeros(1, np.float32), "x")
        self.write_tensor(folder / "test_data_set_0" / "input_0.pb", data)
        return folder / "model.onnx"

    @staticmethod
    def write_profile(file, *nodes):
        """A profile as ONNX Runtime 1.31 writes it, an event per line: of nodes (name, operator, provider)."""
        start = '"pid" :1,"tid" :1,"dur" :1,"ts" :1,"ph" : "X"'
        rows = [f'{{"cat" : "Session",{start},"name" :"model_run","args" : {{}}}}']
        for index, (name, operator, provider) in enumerate(nodes):
            args = f'"op_name" : "{operator}","node_index" : "{index}","provider" : "{provider}"'
            args = args if operator else ""
            rows.append(f'{{"cat" : "Node",{start},"name" :{json.dumps(f"{name}_kernel_time")},"args" : {{{args}}}}}')
        file.write_text("[\n" + ",\n".join(rows) + "\n]")
        return file

    def crafted_random(self, folder):
        """A model that answers differently each time."""
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
        graph = helper.make_graph([helper.make_node("RandomNormal", [], ["y"], shape=[4], mean=1000.0)], "g", [x], [y])
        model = self.crafted(folder, self.from_array(np.zeros(4, "f4")), self.from_array(np.full(4, 1000, "f4")))
        proto = onnx.load(model)
        proto.graph.CopyFrom(graph)
        proto.metadata_props[1].value = "cap=0.05 median=1000 sizes=1000 limits=0.05"
        model.write_bytes(proto.SerializeToString())
        return model


def sign(model, data):
    """Writes the manifest of a model, of weights beside it, and of golden data in a folder."""
    try:
        names = sorted(external_files(onnx.load(model, load_external_data=False)))
    except Exception:  # a model that is none is refused before anybody looks for its manifest
        names = []
    golden = [*data.glob("*.pb"), *data.glob("test_data_set_*/*.pb")]
    files = {file.name: sha256_of(file) for file in golden if file.is_file()}
    weights = {Path(name).name: model.parent / name for name in names if (model.parent / name).is_file()}
    manifest = Manifest(sha256_of(model), {name: sha256_of(file) for name, file in weights.items()}, files)
    manifest.write(manifest_of(model))


def build(*arguments):
    """Builds, or skips the test where that cannot be done."""
    environment = {**os.environ, "PYTHON": sys.executable}
    done = Replay.run(PROJECT / "tools" / "build_replay.sh", *arguments, env=environment)
    if done.returncode == 3:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr


def pytest_collection_modifyitems(items):
    """What runs the C++ programs waits for them to be built."""
    for item in items:
        if {"replay", "sanitized"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.integration)


@pytest.fixture(scope="session")
def replay():
    build()
    return Replay()


@pytest.fixture(scope="session")
def sanitized():
    build("sanitize")


class Mixed(nn.Module):
    """Several inputs, and outputs of every dtype that a network may have."""

    def __init__(self):
        super().__init__()
        self.embed, self.drop, self.linear = nn.Embedding(7, 3), nn.Dropout(0.5), nn.Linear(3, 5)

    def forward(self, image, index, mask):
        features = self.drop(image) + self.embed(index) * mask
        logits = self.linear(features)
        return {
            "logits": logits,
            "class": logits.argmax(1),
            "positive": logits.sum(1) > 0,
            "half": features.half(),
            "count": mask.sum(1).to(torch.int32),
            "any": mask.any(1).to(torch.uint8),
        }


def digits_network():
    torch.manual_seed(0)
    model = demo.network()
    for _ in range(3):
        model(torch.rand(64, 1, 8, 8))
    return model


@pytest.fixture(scope="session")
def digits(replay, tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    assert export_onnx(digits_network(), folder / "model.onnx", torch.rand(12, 1, 8, 8), golden=folder)
    return folder


@pytest.fixture(scope="session")
def mixed(replay, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed")
    torch.manual_seed(0)
    example = (torch.randn(6, 3), torch.arange(6), torch.rand(6, 3) > 0.5)
    assert export_onnx(Mixed(), folder / "model.onnx", example, golden=folder)
    return folder


@pytest.fixture
def broken(mixed, tmp_path):
    """A copy to break."""
    return Path(shutil.copytree(mixed, tmp_path / "copy"))
