"""The export as a whole: what passes is published, what fails leaves no file and an older one untouched."""

import copy
import inspect
import os
import stat
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import nn

from jumpout_export import Jumpout
from jumpout_export.errors import ConversionError
from jumpout_export.export.convert import convert
from jumpout_export.export.publish import export_onnx
from jumpout_export.model.randomness import same_bits
from jumpout_export.model.signature import onnx_batch
from jumpout_export.onnxfile.load import DEFAULT_OPSET
from jumpout_export.report import BatchNormLayer, BatchNormReport, ExportReport
from jumpout_export.verify.inspect import inspect_onnx
from jumpout_export.verify.verify import verify_onnx

SOURCE = """
import torch
from torch import nn
from jumpout_export import Jumpout

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.drop = Jumpout(sigma=0.1, relu=True)
        self.second = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2))
        self.linear = nn.Linear(4, 5)

    def forward(self, x):
        return self.linear(self.second(self.drop(self.bn(self.conv(x)))).mean((2, 3)))

def trained():
    torch.manual_seed(3)
    model = Net()
    for _ in range(3):
        model(torch.randn(16, 1, 8, 8) * 2 + 1)
    return model
"""
NAMESPACE = {"__name__": "__main__"}
exec(SOURCE, NAMESPACE)
trained = NAMESPACE["trained"]
X = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))


class Block(nn.Module):
    """A network with something inside that runs in eval mode too."""

    def __init__(self, inside):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), inside)

    def forward(self, x):
        return self.body(x).mean((2, 3))


class Dropped(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5, training=True)


class Masked(nn.Module):
    def forward(self, x):
        return x * (torch.rand_like(x) < 0.5)


class Numpy(nn.Module):
    def forward(self, x):
        return x * float(np.random.rand())


def line_of(module, text=None):
    lines, first = inspect.getsourcelines(type(module).forward)
    return first + next(index for index, line in enumerate(lines) if text is None or text in line)


def found(report):
    return {check.name: check.note for check in report.checks if check.verdict != "pass"}


@pytest.fixture
def older(tmp_path):
    """An older file of the same name; asserts afterwards that it is there, alone and unchanged."""
    path = tmp_path / "model.onnx"
    path.write_bytes(b"an older export")
    before = path.stat()
    yield path
    assert path.read_bytes() == b"an older export"
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert os.listdir(tmp_path) == ["model.onnx"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    model = trained()
    batchnorm = BatchNormReport(
        verdict="ok", images=64, layers=[BatchNormLayer(name="bn", verdict="ok", w=0.0123, w_low=0.01, w_high=0.02)]
    )
    report = export_onnx(
        model,
        folder / "model.onnx",
        X,
        calibration=[X, X[:3]],
        batchnorm=batchnorm,
        golden=folder,
        keep_debug_info=False,
    )
    return model, folder, report


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
    assert sorted(os.listdir(folder)) == ["model.onnx", "test_data_set_0"]
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
    assert metadata["batchnorm"] == "ok, largest W 0.0123 over 64 images"
    assert metadata["torch"] == torch.__version__
    assert metadata["onnx"] == onnx.__version__
    assert len(metadata["weights_sha256"]) == 64
    assert proto.ir_version == 10
    assert not any(node.metadata_props or node.doc_string for node in proto.graph.node)
    assert b"/" + b"site-packages" not in (folder / "model.onnx").read_bytes()


def test_a_file_in_the_place_of_golden_data_is_found_before_the_work(tmp_path):
    (tmp_path / "test_data_set_0").write_text("")
    with pytest.raises(ValueError, match="there is a file of that name"):
        export_onnx(nn.Linear(8, 2), tmp_path / "model.onnx", X, golden=tmp_path)
    assert not (tmp_path / "model.onnx").exists()


def test_golden_data_is_in_onnx_layout_and_replays(exported):
    model, folder, _ = exported

    def load(name):
        tensor = onnx.TensorProto.FromString((folder / "test_data_set_0" / name).read_bytes())
        return tensor.name, numpy_helper.to_array(tensor)

    assert sorted(os.listdir(folder / "test_data_set_0")) == ["input_0.pb", "output_0.pb"]
    assert load("input_0.pb")[0] == "x"
    assert np.array_equal(load("input_0.pb")[1], X.numpy())
    name, expected = load("output_0.pb")
    assert name == "output"
    with torch.no_grad():
        exact = copy.deepcopy(model).eval().double()(X.double()).float()
    assert np.array_equal(expected, exact.numpy())


@pytest.mark.parametrize(
    ("inside", "text"),
    [(Dropped(), "F.dropout"), (Masked(), "rand_like"), (Numpy(), None)],
    ids=["functional dropout", "rand_like mask", "numpy noise"],
)
def test_randomness_fails_and_names_module_file_and_line(inside, text, older):
    report = export_onnx(Block(inside), older, X)
    assert not report
    assert found(report).keys() == {"randomness"}
    note = found(report)["randomness"]
    assert f"in module `body.2` at {__file__}:{line_of(inside, text)}" in note
    assert report.providers["cpu"].verdict == "not_run"
    assert (report.sha256, report.opset) == ("", 0)


def test_nan_in_a_running_variance_fails_and_names_the_layer(older):
    model = trained()
    model.second[1].running_var[2] = torch.nan
    report = export_onnx(model, older, X)
    assert not report
    assert found(report) == {"batchnorm": "`second.1` running_var has 1 non-finite of 4 values"}
    assert report.providers["cpu"].reason == "the model failed the audit"


def test_without_an_older_file_nothing_appears(tmp_path):
    assert not export_onnx(Block(Masked()), tmp_path / "model.onnx", X, golden=tmp_path)
    assert os.listdir(tmp_path) == []


def test_nan_in_the_output_of_both_fails_after_the_conversion(older):
    class Root(nn.Module):
        def forward(self, x):
            return torch.sqrt(-1 - x.abs())

    report = export_onnx(Root(), older, X)
    assert {"cpu/off/finite", "cpu/all/finite"} <= found(report).keys()
    assert report.providers["cpu"].verdict == "fail"


def test_an_interrupt_at_any_step_leaves_nothing_behind(older):
    steps = []

    def interrupt_at(step):
        def progress(what, done, total):
            steps.append(what)
            if what == step:
                raise KeyboardInterrupt

        return progress

    for step in ("export: fold", "export: inspect", "verify: sample"):
        with pytest.raises(KeyboardInterrupt):
            export_onnx(nn.Linear(8, 2), older, X, golden=older.parent, progress=interrupt_at(step))
    assert list(dict.fromkeys(steps)) == [
        *(f"export: {s}" for s in ("audit", "fold", "convert", "inspect", "verify")),
        "verify: sample",
    ]


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


class Baked(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 3)

    def forward(self, x):
        return self.linear(x.view(4, -1))


def test_a_baked_in_batch_size_fails_clearly_and_exports_static(tmp_path):
    report = export_onnx(Baked(), tmp_path / "model.onnx", X)
    assert found(report).keys() == {"convert"}
    assert "the model fixes its batch size" in found(report)["convert"]
    assert "pass dynamic_batch=False (--static)" in found(report)["convert"]
    assert os.listdir(tmp_path) == []
    report = export_onnx(Baked(), tmp_path / "model.onnx", X, dynamic_batch=False)
    assert report
    assert {check.name for check in report.checks} > {"cpu/off/batch=4/worst error"}
    dim = onnx.load(tmp_path / "model.onnx").graph.input[0].type.tensor_type.shape.dim[0]
    assert (dim.dim_value, dim.dim_param) == (4, "")


def test_a_batch_size_that_pytorch_itself_cannot_run_fails_clearly(older):
    class Pairs(nn.Module):
        def forward(self, x):
            return x[0::2] + x[1::2]

    report = export_onnx(Pairs(), older, X)
    notes = " ".join(found(report).values())
    assert "dynamic_batch=False" in notes
    assert not report


def test_the_batch_is_open_even_if_the_example_is_one_image(tmp_path):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 2))
    assert export_onnx(model, tmp_path / "model.onnx", X[:1])
    proto = onnx.load(tmp_path / "model.onnx")
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert verify_onnx(tmp_path / "model.onnx", model, torch.randn(5, 1, 8, 8))


class Keywords(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 3)
        self.drop = nn.Dropout(0.5)

    def forward(self, image, index, *, mask, scale=None):
        y = self.drop(image) + self.embed(index) * mask
        return {"sum": y, "nothing": None, "pair": y[:, 0]} if scale is None else (y, (y * scale,))


class FailsOnEight(nn.Linear):
    def forward(self, x):
        if not torch.compiler.is_exporting() and len(x) == 8:
            raise RuntimeError("eight are too many")
        return super().forward(x)


def test_without_golden_data_nothing_is_published(tmp_path):
    report = export_onnx(FailsOnEight(8, 2), tmp_path / "model.onnx", torch.randn(12, 8), golden=tmp_path)
    (failed,) = [check for check in report.checks if check.verdict != "pass"]
    assert failed.name == "golden"
    assert failed.note == "PyTorch itself cannot run the first images of the example: eight are too many"
    assert os.listdir(tmp_path) == []


class Smallest(nn.Linear):
    def forward(self, x):
        return super().forward(x).masked_fill(x[:, :2] > 0, torch.finfo(x.dtype).min)


def test_a_mask_of_the_smallest_number_stays_finite_in_golden_data(tmp_path):
    assert export_onnx(Smallest(8, 2), tmp_path / "model.onnx", torch.randn(8, 8), golden=tmp_path)
    golden = numpy_helper.to_array(onnx.load_tensor(tmp_path / "test_data_set_0" / "output_0.pb"))
    assert np.isfinite(golden).all()
    assert golden.min() == np.finfo(np.float32).min


def test_several_inputs_and_a_dict_of_outputs_keep_their_names(tmp_path):
    example = {
        "image": torch.randn(6, 3),
        "index": torch.arange(6),
        "mask": torch.tensor([True, False] * 3)[:, None].expand(6, 3),
    }
    assert export_onnx(Keywords(), tmp_path / "model.onnx", example, golden=tmp_path)
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert [value.name for value in graph.input] == ["image", "index", "mask"]
    assert [value.name for value in graph.output] == ["sum", "pair"]
    assert len(os.listdir(tmp_path / "test_data_set_0")) == 5


def test_nested_outputs_are_numbered(tmp_path):
    example = {
        "image": torch.randn(6, 3),
        "index": torch.arange(6),
        "mask": torch.ones(6, 3),
        "scale": torch.ones(6, 1),
    }
    assert export_onnx(Keywords(), tmp_path / "model.onnx", example)
    assert [value.name for value in onnx.load(tmp_path / "model.onnx").graph.output] == ["output_0", "output_1"]


def test_an_index_as_last_positional_input_is_no_label(tmp_path):
    class Lookup(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(10, 3)

        def forward(self, x, index):
            return x + self.embed(index)

    assert export_onnx(Lookup(), tmp_path / "model.onnx", (torch.randn(6, 3), torch.arange(6)))


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


def test_allowed_randomness_is_proven_absent_from_the_file_or_named_in_it(tmp_path):
    class Unused(nn.Module):
        def forward(self, x):
            torch.rand_like(x)
            return x * 2

    path = tmp_path / "model.onnx"
    assert found(export_onnx(Block(Unused()), path, X)).keys() == {"randomness"}
    assert export_onnx(Block(Unused()), path, X, allow=["body.2"])
    assert inspect_onnx(path)
    report = export_onnx(Block(Masked()), path, X, allow=["body"])
    assert report, found(report)
    assert any(note.startswith("NOT deterministic: random on purpose: 1 node") for note in report.notes)
    assert not inspect_onnx(path)


def test_an_operator_without_translation_is_a_failure_with_the_reason(older):
    class Bessel(nn.Module):
        def forward(self, x):
            return torch.special.bessel_j0(x)

    note = found(export_onnx(Bessel(), older, X))["convert"]
    assert "torch.onnx.export failed with ConversionError" in note
    assert "bessel_j0" in note


def test_data_dependent_control_flow_is_a_failure_with_the_reason(older, capfd):
    class Branch(nn.Module):
        def forward(self, x):
            return x * 2 if x.sum().item() > 0 else x

    assert "Could not guard on data-dependent expression" in found(export_onnx(Branch(), older, X))["convert"]
    assert capfd.readouterr() == ("", "")


def test_the_file_has_the_permissions_of_any_new_file(exported, tmp_path):
    (tmp_path / "any").touch()
    assert stat.S_IMODE((exported[1] / "model.onnx").stat().st_mode) == stat.S_IMODE((tmp_path / "any").stat().st_mode)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"path": "model.pt"}, ValueError, r"path must end in \.onnx, got 'model\.pt'"),
        ({"path": "no/such/model.onnx"}, ValueError, "the folder of path does not exist: 'no/such'"),
        ({"path": 3}, TypeError, "path must be a str or path, got int"),
        ({"path": "folder.onnx"}, ValueError, r"path is a folder, not a file: 'folder\.onnx'"),
        (
            {"golden": "no/where"},
            ValueError,
            "golden data needs a folder, or a name in an existing one, got 'no/where'",
        ),
        (
            {"opset": 17},
            ValueError,
            r"opset must be in \[18, \d+\], got 17; .* 18 the oldest that torch's converter wri",
        ),
        ({"opset": 999}, ValueError, r"opset must be in \[18, \d+\], got 999; \d+ is the newest that the installed ON"),
        ({"opset": "18"}, TypeError, "opset must be an int, got str"),
        ({"opset": True}, TypeError, "opset must be an int, got bool"),
        ({"providers": ["gpu"]}, ValueError, "providers must be of cpu, cuda, got 'gpu'"),
        (
            {"model": torch.relu},
            TypeError,
            r"model must be a torch\.nn\.Module or torch\.export\.ExportedProgram, got ",
        ),
        ({"example": "x"}, TypeError, "example: a batch must be a tensor"),
        (
            {"model": nn.Bilinear(3, 3, 2), "example": (torch.ones(2, 3), 3)},
            TypeError,
            "`input2` must be a tensor, got int",
        ),
        (
            {"example": torch.ones(2, 3, dtype=torch.bfloat16)},
            TypeError,
            "input `input` has dtype bfloat16, allowed are",
        ),
        ({"example": torch.ones(())}, ValueError, "at least one input must have a batch dimension, got only scalars"),
        ({"example": torch.ones(0, 3)}, ValueError, r"the batch must not be empty, got shape \(0, 3\)"),
        ({"example": torch.ones(2, 4)}, ValueError, "the model cannot run the example: RuntimeError"),
        ({"calibration": []}, ValueError, "nothing to compare: calibration is empty"),
        ({"calibration": 3}, TypeError, "calibration must be a batch or an iterable of batches, got int"),
        ({"allow": ["nowhere"]}, ValueError, "allow names no module of the model: 'nowhere'; it has none"),
        (
            {"model": nn.Sequential(nn.Linear(3, 2), nn.Dropout()), "allow": ["drop"]},
            ValueError,
            "allow names no module of the model: 'drop'; it has '0'; '1'",
        ),
        (
            {"model": nn.ModuleDict({"dropout": nn.Dropout(), "linear": nn.Linear(3, 2)}), "allow": ["dropuot"]},
            ValueError,
            r"allow names no module of the model: 'dropuot'; did you mean 'dropout'\?",
        ),
    ],
)
def test_wrong_arguments_are_named_before_anything_is_written(arguments, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.onnx").mkdir()
    given = {"model": nn.Linear(3, 2), "path": "model.onnx", "example": torch.ones(2, 3), **arguments}
    with pytest.raises(error, match=message):
        export_onnx(**given)
    assert os.listdir(tmp_path) == ["folder.onnx"]


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_with_the_line_that_installs_it(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    message = rf"{package} cannot be imported .* pip install 'jumpout-export\[onnx\]'"
    with pytest.raises(ImportError, match=message):
        export_onnx(nn.Linear(3, 2), tmp_path / "model.onnx", torch.ones(2, 3))


def test_cuda_that_cannot_be_used_publishes_nothing(older):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has the CUDA provider")
    report = export_onnx(nn.Linear(8, 2), older, X, providers=("cpu", "cuda"))
    assert {name: provider.verdict for name, provider in report.providers.items()} == {"cpu": "pass", "cuda": "not_run"}
    assert found(report).keys() == {"cuda"}
    assert not any(check.verdict == "fail" for check in report.checks)
    assert not report
