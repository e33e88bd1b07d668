"""The export as a whole: what is published, with its proof and where it comes from."""

import os
import stat
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from support.user_network import SOURCE, trained
from torch import nn

from jumpout_export import Jumpout
from jumpout_export.errors import ConversionError
from jumpout_export.export.convert import convert
from jumpout_export.export.publish import export_onnx
from jumpout_export.model.randomness import same_bits
from jumpout_export.model.signature import onnx_batch
from jumpout_export.onnxfile.load import DEFAULT_OPSET
from jumpout_export.report import ExportReport
from jumpout_export.verify.inspect import inspect_onnx
from jumpout_export.verify.verify import verify_onnx

pytestmark = pytest.mark.integration

X = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_a_jumpout_network_is_exported_with_its_proof(exported):
    model, folder, report = exported
    assert report
    assert isinstance(report, ExportReport)
    assert report.kind == "export"
    assert report.opset == DEFAULT_OPSET
    assert report.path == str(folder / "model.onnx")
    assert report.sha256 == inspect_onnx(folder / "model.onnx").sha256
    assert [(layer.path, layer.action) for layer in report.folded] == [("drop", "relu"), ("second.3", "identity")]
    assert report.batchnorm.verdict == "ok"
    assert {"parameters", "batchnorm", "randomness", "convert", "file/random nodes"} < {c.name for c in report.checks}
    assert report == ExportReport.model_validate_json(report.model_dump_json())
    assert sorted(os.listdir(folder)) == ["model.manifest.json", "model.onnx", "test_data_set_0"]
    assert {node.op_type for node in onnx.load(folder / "model.onnx").graph.node} == {
        "Conv",
        "Relu",
        "ReduceMean",
        "Gemm",
    }
    assert verify_onnx(folder / "model.onnx", model, torch.randn(9, 1, 8, 8))


def test_the_file_tells_where_it_comes_from_and_nothing_else(exported):
    _, folder, report = exported
    proto = onnx.load(folder / "model.onnx")
    metadata = {entry.key.removeprefix("jumpout_export."): entry.value for entry in proto.metadata_props}
    facts = {f"jumpout_export.{key}": value for key, value in metadata.items() if key != "tolerance.output"}
    assert facts == report.provenance
    assert metadata["tolerance.output"].startswith("cap=0.001 median=")
    assert list(metadata) == sorted(metadata)
    assert metadata["folded"].startswith(
        "drop: Jumpout(sigma=0.1, p_min=0.01, p_max=0.6, relu=True) -> relu; second.3: "
    )
    assert metadata["batchnorm"] == "ok, largest W 0.0123 over 64 samples"
    assert metadata["torch"] == torch.__version__
    assert metadata["onnx"] == onnx.__version__
    assert len(metadata["weights_sha256"]) == 64
    assert proto.ir_version == 10
    assert not any(node.metadata_props or node.doc_string for node in proto.graph.node)
    assert b"/" + b"site-packages" not in (folder / "model.onnx").read_bytes()


@pytest.mark.parametrize("child", [None, "second.1"], ids=["wholly", "one child"])
def test_a_model_left_in_train_mode_is_exported_as_its_eval_network(child, tmp_path):
    model = trained()
    if child is not None:
        model.eval().get_submodule(child).train()
    before = [module.training for module in model.modules()]
    report = export_onnx(model, tmp_path / "model.onnx", X)
    assert report
    what = "the model was in train mode;" if child is None else "in train mode: `second.1`;"
    assert f"{what} its eval network was taken".replace("; its", "; its" if child is None else "; the") in report.notes
    assert [module.training for module in model.modules()] == before
    assert verify_onnx(tmp_path / "model.onnx", model.eval(), X)


def test_the_model_stays_as_it_was_and_nothing_is_printed(tmp_path, capfd):
    model = trained()
    model.conv.bias.requires_grad_(False)
    np.random.seed(3)

    def state():
        tensors = [*model.named_parameters(), *model.named_buffers()]
        return (
            [(name, id(value), value.requires_grad, value.detach().clone()) for name, value in tensors],
            [(path, id(module), module.training, len(module._forward_hooks)) for path, module in model.named_modules()],
            torch.get_rng_state(),
            np.random.get_state()[1].tolist(),
            model.drop.statistics,
        )

    before = state()
    assert export_onnx(model, tmp_path / "model.onnx", X)
    assert same_bits(before, state())
    assert capfd.readouterr() == ("", "")
    with pytest.raises(ValueError, match="the model cannot run the example"):
        export_onnx(model, tmp_path / "model.onnx", X[:, :, :2, 0])
    assert same_bits(before, state())


def test_the_bytes_are_the_same_from_another_folder_process_and_hash_seed(exported, tmp_path):
    expected = (exported[1] / "model.onnx").read_bytes()
    batchnorm = exported[2].batchnorm
    script = SOURCE + (
        "from jumpout_export.export.publish import export_onnx\n"
        "from jumpout_export.report import BatchNormReport\n"
        f"batchnorm = BatchNormReport.model_validate_json({batchnorm.model_dump_json()!r})\n"
        "x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))\n"
        "assert export_onnx(trained(), 'model.onnx', x, batchnorm=batchnorm, golden='.')\n"
    )
    (tmp_path / "script.py").write_text(script)
    (tmp_path / "elsewhere").mkdir()
    environment = {**os.environ, "PYTHONHASHSEED": "5"}
    command = [sys.executable, "-W", "error", str(tmp_path / "script.py")]
    done = subprocess.run(
        command, cwd=tmp_path / "elsewhere", env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "elsewhere" / "model.onnx").read_bytes() == expected


def test_the_opset_is_honoured_or_refused(tmp_path):
    class Mean(nn.Module):
        def forward(self, x):
            return x.mean((2, 3))

    assert export_onnx(Mean(), tmp_path / "model.onnx", X, opset=21).opset == 21
    assert onnx.load(tmp_path / "model.onnx").opset_import[0].version == 21
    model = Mean().eval()
    with pytest.raises(ConversionError, match="opset 13 was asked for, the converter wrote 18; it has 18 and later"):
        convert(model, onnx_batch(X, model), tmp_path / "old.onnx", opset=13)
    assert not (tmp_path / "old.onnx").exists()


@pytest.mark.parametrize(
    "root", [nn.Dropout(0.5), Jumpout(relu=True), nn.Sequential(Jumpout(), nn.Dropout(0.1))], ids=repr
)
def test_a_model_of_nothing_but_dropout_is_exported(root, tmp_path):
    report = export_onnx(root, tmp_path / "model.onnx", torch.randn(3, 5))
    assert report
    assert {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node} <= {"Identity", "Relu"}


def test_debug_info_is_kept_on_request_but_no_path(tmp_path):
    assert export_onnx(nn.Sequential(nn.Linear(8, 2)), tmp_path / "model.onnx", X, keep_debug_info=True)
    node = onnx.load(tmp_path / "model.onnx").graph.node[-1]
    trace = {entry.key: entry.value for entry in node.metadata_props}["pkg.torch.onnx.stack_trace"]
    assert 'File "linear.py", line' in trace


def test_the_file_has_the_permissions_of_any_new_file(exported, tmp_path):
    (tmp_path / "any").touch()
    assert stat.S_IMODE((exported[1] / "model.onnx").stat().st_mode) == stat.S_IMODE((tmp_path / "any").stat().st_mode)
