"""The library as a program sees it: what is loaded was proven, tensors have names, and every error is of one type."""

import json
import re

import onnx
import pytest
from onnx import numpy_helper


@pytest.fixture
def used(replay, sanitized):
    """What `replay-model` prints of a model, as lines."""

    def use(model):
        done = replay(model, program=replay.sanitized / "replay-model")
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout.splitlines()

    return use


def said(lines, what):
    (found,) = [line.removeprefix(f"{what}: ") for line in lines if line.startswith(f"{what}: ")]
    return found


def test_a_model_is_loaded_proven_and_run_by_name(used, mixed):
    lines = used(mixed / "model.onnx")
    assert said(lines, "load") == "fine"
    assert said(lines, "folded").startswith("drop: Dropout(")
    assert said(lines, "PASS") == "6 outputs within tolerance of the golden data"
    (report,) = [json.loads(line) for line in lines if line.startswith("{")]
    assert report["passed"]
    assert "passed, 9 checks" in lines  # of the manifest, the nodes, the bits, six outputs
    assert len(report["checks"]) == 9
    assert report["checks"][1]["note"] == "a session on the CPU alone runs every node there"
    assert (said(lines, "logits"), said(lines, "any")) == ("float32[6,5]", "uint8[6]")
    assert "four threads: 4 right" in lines
    assert "2 values, -2" in lines


def test_every_mistake_is_an_error_of_one_type_that_names_it(used, mixed):
    lines = used(mixed / "model.onnx")
    assert re.fullmatch(r"2 .*none\.onnx: there is no such file", said(lines, "no file"))
    assert said(lines, "no provider") == "2 --provider must be cpu or cuda, got tpu"
    assert said(lines, "no threads") == "2 threads must be at least 1, got 0"
    assert said(lines, "missing") == "2 there is no tensor `mask`; there are image, index"
    assert said(lines, "twice") == "2 the model has 3 inputs, got 4 tensors"
    held = "2 input `image`: it holds `image`, {}; the model has `image`, float32[?,3]"
    assert said(lines, "shape") == held.format("float32[6,3,1]")
    assert said(lines, "dtype") == held.format("int32[6,3]")
    assert said(lines, "bytes") == "2 input `image`: it holds 71 bytes, float32[6,3] has 72"
    assert said(lines, "negative") == "2 input `image`: a dimension is negative"
    assert said(lines, "name").startswith("2 there is no tensor `nothing`; there are logits, class, ")
    assert said(lines, "values") == "2 `logits` holds float32, asked for are int64"


def test_a_model_that_nobody_proved_is_not_loaded(used, broken):
    proto = onnx.load(broken / "model.onnx")
    del proto.metadata_props[:]
    (broken / "model.onnx").write_bytes(proto.SerializeToString())
    reason = "its metadata do not say that jumpout-export has verified it; export it anew with jumpout-export"
    assert said(used(broken / "model.onnx"), "load") == f"2 {broken}/model.onnx: {reason}"


def test_a_model_that_gives_other_outputs_here_is_loaded_and_not_proven(used, broken):
    file = broken / "test_data_set_0" / "output_0.pb"
    tensor = onnx.load_tensor(file)
    file.write_bytes(numpy_helper.from_array(numpy_helper.to_array(tensor) + 1, tensor.name).SerializeToString())
    lines = used(broken / "model.onnx")
    assert said(lines, "load") == "fine"
    assert said(lines, "FAIL") == "1 of 6 outputs beyond tolerance"
    assert "failed, 9 checks" in lines


def test_a_model_that_cannot_run_its_own_data_is_not_proven(used, broken):
    tensor = numpy_helper.from_array(numpy_helper.to_array(onnx.load_tensor(golden(broken, 1))) + 99, "index")
    golden(broken, 1).write_bytes(tensor.SerializeToString())
    assert "failed, 1 checks" in used(broken / "model.onnx")


def golden(folder, number):
    return folder / "test_data_set_0" / f"input_{number}.pb"


@pytest.fixture
def beside(replay, tmp_path):
    """An export whose weights lie beside it."""
    import torch
    from torch import nn

    from jumpout_export.export.publish import export_onnx

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 64))
    report = export_onnx(model, tmp_path / "model.onnx", torch.randn(4, 6), external_data=True, golden=tmp_path)
    (name,) = report.data_files
    return tmp_path, tmp_path / name


@pytest.mark.parametrize("program", ["program", "load"])
def test_weights_beside_the_model_are_those_it_was_verified_with(replay, beside, program):
    folder, weights = beside
    program = getattr(replay, program)
    assert replay.run(program, folder / "model.onnx").returncode == 0
    weights.write_bytes(weights.read_bytes() + bytes(1))  # behind all values, where no output can show it
    reason = rf"{re.escape(str(weights))}: it does not hold the weights that the model was verified with"
    replay.refused(1, reason, folder / "model.onnx", program=program)
