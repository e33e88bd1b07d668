"""Exported programs: their eval network, what of training mode is folded or refused, and hostile files."""

import contextlib
import copy
import inspect
import io
import json
import os
import pickle
import warnings
import zipfile

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim
from typer.testing import CliRunner

from jumpout_export import export_onnx, fold_model, verify_onnx
from jumpout_export.cli.app import app
from jumpout_export.errors import LoadError, NotFoldableError
from jumpout_export.fold.network.audit import audit_model
from jumpout_export.fold.network.folded import fold
from jumpout_export.program.file import load_program
from jumpout_export.program.network import as_module
from jumpout_export.program.sizes import InputSizes

X = torch.linspace(-1, 2, 4 * 64).reshape(4, 1, 8, 8)


class Net(nn.Module):
    def __init__(self, functional=False):
        super().__init__()
        self.functional = functional
        self.conv, self.bn = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.drops = nn.Sequential(nn.RReLU(), nn.Dropout(0.5), nn.Dropout2d(0.3))
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.1, batch_first=True)
        self.lstm, self.alpha = nn.LSTM(4, 4, 2, dropout=0.2, batch_first=True), nn.AlphaDropout(0.2)
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        x = self.drops(self.bn(self.conv(x))).flatten(2).transpose(1, 2)
        x = self.alpha(self.lstm(self.attention(x, x, x)[0])[0].mean(1))
        if self.functional:
            x = F.dropout(x, 0.4, self.training)
        return self.linear(x)


class First(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x.mean(1))[0]


class AlwaysOn(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5, training=True)


class Noise(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x) if self.training else x


def trained(model, x=X):
    model.train()
    with torch.no_grad():
        for step in range(3):
            model(x * (1 + step) + step)
    return model


def exported(model, mode, x=X, *, dynamic=True):
    model.train(mode)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own about copies of its tree specs
        shapes = ({0: Dim.DYNAMIC},) if dynamic else None
        return torch.export.export(model, (x,), dynamic_shapes=shapes)


def evaluated(model, x=X):
    with torch.no_grad():
        return copy.deepcopy(model).eval()(x)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return trained(Net())


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return trained(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)))


@pytest.fixture(scope="module")
def saved(small):
    """A program from train mode as bytes of a file."""
    buffer = io.BytesIO()
    torch.export.save(exported(small, True), buffer)
    return buffer.getvalue()


@pytest.fixture
def file(tmp_path, saved):
    (tmp_path / "net.pt2").write_bytes(saved)
    return tmp_path / "net.pt2"


def line_of(code, text):
    lines, first = inspect.getsourcelines(code)
    return first + next(index for index, line in enumerate(lines) if text in line)


@pytest.mark.parametrize("mode", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("loaded", [False, True], ids=["in memory", "file"])
def test_a_program_folds_to_the_modules_eval_network_bit_for_bit(net, mode, loaded, tmp_path):
    program = exported(net, mode)
    if loaded:
        torch.export.save(program, tmp_path / "net.pt2")
        program = load_program(tmp_path / "net.pt2")
    folded = fold(program, X)
    assert torch.equal(evaluated(folded.model), evaluated(net))
    assert [(layer.path, layer.kind, layer.action) for layer in folded.layers] == (
        [
            ("drops.0", "rrelu", "leaky_relu"),
            ("drops.1", "dropout", "identity"),
            ("drops.2", "feature_dropout", "identity"),
            ("attention", "dropout", "identity"),
            ("lstm", "lstm", "identity"),
            ("alpha", "alpha_dropout", "identity"),
        ]
        if mode
        else []
    )
    assert folded.notes == (("in training mode in the program: `bn`; its running statistics are used",) if mode else ())
    assert dict(folded.model.named_parameters()).keys() == dict(net.named_parameters()).keys()


def test_a_program_from_train_mode_is_published_and_equals_the_module(small, tmp_path):
    net = nn.Sequential(small, First(nn.LSTM(6, 3, batch_first=True)))  # whose first state is float32 in the graph
    report = export_onnx(exported(net, True), tmp_path / "net.onnx", X)
    assert report, [check for check in report.checks if check.verdict != "pass"]
    assert "8 x torch's own error against float64" in " ".join(report.notes)  # its float64 copy runs
    assert verify_onnx(tmp_path / "net.onnx", net, X)
    assert "0.0.weight" in {tensor.name for tensor in onnx.load(tmp_path / "net.onnx").graph.initializer}
    other = copy.deepcopy(net)
    with torch.no_grad():
        other[0][0].bias[0] += 0.1
    assert not verify_onnx(tmp_path / "net.onnx", exported(other, False), X)


def test_a_decomposed_program_is_taken_too():
    model = trained(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.RReLU(), nn.Dropout(0.5)))
    for mode in (False, True):
        program = exported(model, mode)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = program.run_decompositions()
        torch.testing.assert_close(fold_model(program, X)(X), evaluated(model))


def test_noise_that_is_no_layer_is_refused_with_node_module_file_and_line():
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), Noise())
    with pytest.raises(NotFoldableError, match=r"the exported program draws random numbers") as error:
        fold_model(exported(model, True), X)
    assert error.value.modules == ("2",)
    line = line_of(Noise, "rand_like")
    assert f"node `rand_like` (aten.rand_like.default) in module `2` at {__file__}:{line}" in str(error.value)


def test_functional_dropout_is_off_in_a_program_from_train_mode_and_a_note_says_so():
    torch.manual_seed(0)
    model = trained(Net(functional=True))
    folded = fold(exported(model, True), X)
    assert torch.equal(evaluated(folded.model), evaluated(model))
    assert "is no layer of torch, so it was taken to be off in eval mode" in folded.notes[-1]
    assert f"{__file__}:{line_of(Net, 'F.dropout')}" in folded.notes[-1]


def test_dropout_that_is_on_in_a_program_from_eval_mode_is_refused(tmp_path):
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), AlwaysOn())
    program = exported(model, False)
    with pytest.raises(NotFoldableError, match=r"node `dropout_1` \(aten.dropout.default\) in module `2`"):
        fold_model(program, X)
    report = export_onnx(program, tmp_path / "net.onnx", X)
    assert not report
    assert [check.name for check in report.checks if check.verdict == "fail"] == ["randomness"]
    assert not (tmp_path / "net.onnx").exists()


def test_batchnorm_buffers_of_a_program_are_audited():
    model = trained(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)))
    model[1].running_var[1] = torch.nan
    checks = {check.name: check for check in audit_model(as_module(exported(model, True))).checks}
    assert checks["batchnorm"].note == "`1` running_var has 1 non-finite of 4 values"
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    checks = {check.name: check for check in audit_model(as_module(exported(model, True))).checks}
    assert "`1` has no running statistics" in checks["batchnorm"].note


def test_a_program_of_one_batch_size_is_refused_with_an_open_one_and_says_what_to_do(tmp_path):
    model = trained(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)))
    program = exported(model, True, dynamic=False)
    report = export_onnx(program, tmp_path / "net.onnx", X)
    assert not report
    assert "pass dynamic_batch=False (--static)" in report.checks[-1].note
    assert export_onnx(program, tmp_path / "net.onnx", X, dynamic_batch=False)
    folded = fold_model(program, X)
    with pytest.raises(
        ValueError, match=r"axis 0 of input `input` is 2, the exported program takes 4; pass dynamic_batch"
    ):
        folded(X[:2])
    with pytest.raises(ValueError, match=r"axis 3 of input `input` is 7, .* the program was exported for that size"):
        folded(X[..., :7])


def test_sizes_beyond_a_range_of_the_program_are_refused():
    model = nn.Linear(8, 8)
    shapes = {"input": {0: Dim("images", min=2, max=5)}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(model, (X[:, 0, 0],), dynamic_shapes=shapes)
    folded = fold_model(program, X[:, 0, 0])
    assert folded(X[:1, 0, 0]).shape == (1, 8)
    with pytest.raises(ValueError, match="is 8, the exported program takes 1 to 5"):
        folded(X[0, 0])


class Sixteens(nn.Module):
    def forward(self, x):
        return x if x.shape[0] % 16 else 2 * x


class Pyramid(nn.Module):
    def forward(self, x):
        return x - F.interpolate(F.max_pool2d(x, 2), scale_factor=2)


def test_a_program_with_conditions_on_its_batch_size_is_refused_with_an_open_one(tmp_path):
    x = X[:, 0, 0]
    shapes = ({0: Dim("images", min=1, max=16)},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        limited = torch.export.export(nn.Linear(8, 8), (x,), dynamic_shapes=shapes)
    path = tmp_path / "net.onnx"
    for program, text in (
        (limited, "holds only where `L['input'].size()[0] <= 16`"),
        (exported(Sixteens(), False, x), "holds only where `(L['x'].size()[0] % 16) != 0`"),
    ):
        report = export_onnx(program, path, x)
        assert not report
        assert report.checks[-1].name == "convert"
        assert text in report.checks[-1].note
        assert "pass dynamic_batch=False (--static)" in report.checks[-1].note
        assert export_onnx(program, path, x, dynamic_batch=False)


def test_a_programs_conditions_on_a_named_axis_are_a_note_and_a_limit_is_refused(tmp_path):
    path, axes = tmp_path / "net.onnx", {"x": {2: "height"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(Pyramid(), (X,), dynamic_shapes=({0: Dim.DYNAMIC, 2: Dim.DYNAMIC},))
        limited = torch.export.export(nn.Tanh(), (X,), dynamic_shapes=({0: Dim.DYNAMIC, 2: Dim("h", max=64)},))
    report = export_onnx(program, path, X, dynamic_axes=axes)
    assert report, [check for check in report.checks if check.verdict != "pass"]
    assert any(
        "sizes have to obey" in text and "the exported program was made for no other" in text for text in report.notes
    )
    report = export_onnx(limited, path, X, dynamic_axes={"input": {2: "height"}})
    assert not report
    assert "holds only where `L['input'].size()[2] <= 64`, so `height` is not open" in report.checks[-1].note


def test_a_program_whose_conditions_cannot_be_read_says_so(tmp_path, monkeypatch):
    program = exported(nn.Tanh(), False)
    monkeypatch.delattr(program, "_guards_code")
    sizes = InputSizes(program)
    limit, condition = sizes.restricted([{}])
    assert limit == ""
    assert condition.startswith("this version of torch does not say what the exported program takes for granted")


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_line_takes_a_program(file, tmp_path):
    out = tmp_path / "net.onnx"
    assert run("export", file, out, "--input-shape", "4,1,8,8").exit_code == 0
    assert run("verify", out, "--against", file, "--input-shape", "4,1,8,8").exit_code == 0


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["check-bn", "FILE", "--data", "d.npz"], "a graph without BatchNorm layers"),
        (["recalibrate-bn", "FILE", "--data", "d.npz", "--dry-run"], "a graph without BatchNorm layers"),
        (["export", "FILE", "OUT", "--input-shape", "4,1,8,8", "--weights", "w.pt"], "holds its own weights"),
        (["export", "missing.pt2", "OUT", "--input-shape", "4,1,8,8"], "MODEL missing.pt2: there is no such file"),
    ],
)
def test_what_cannot_be_done_with_a_program_is_said(file, tmp_path, command, message):
    places = {"FILE": file, "OUT": tmp_path / "net.onnx"}
    result = run(*(places.get(part, part) for part in command))
    assert isinstance(result.exception, LoadError)
    assert message in str(result.exception)


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def rewritten(file, changes, *, compression=zipfile.ZIP_STORED):
    """The archive with entries replaced, added or (None) left out; keys without the archive's own folder."""
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    root = next(iter(entries)).split("/")[0]
    for name, change in changes.items():
        key = f"{root}/{name}"
        value = change(entries[key]) if callable(change) else change
        entries[key] = value
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in entries.items():
            if data is not None:
                archive.writestr(name, data)
    return file


def in_model(change):
    """Changes the JSON of the graph."""

    def edit(data):
        model = json.loads(data)
        change(model)
        return json.dumps(model).encode()

    return {"models/model.json": edit}


def set_expression(text):
    def change(value):
        """Every expression, wherever it is."""
        if isinstance(value, dict) and "expr_str" in value:
            value["expr_str"] = text
        for entry in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            change(entry)

    return change


def set_target(text):
    def change(model):
        model["graph_module"]["graph"]["nodes"][-1]["target"] = text

    return change


def set_argument_name(model):
    model["graph_module"]["module_call_graph"][0]["signature"]["forward_arg_names"] = ["x=open('owned', 'w')"]


def set_container(model):
    spec = '[1, {"type": "collections.defaultdict", "context": "{}", "children_spec": []}]'
    model["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = spec


def rename_input(model):
    graph = model["graph_module"]["graph"]
    graph["inputs"][0]["as_tensor"]["name"] = "p);open('owned','w'"


def pickled_weight(marker):
    buffer = io.BytesIO()
    torch.save({"x": Bomb(marker)}, buffer)

    def config(data):
        entries = json.loads(data)
        entries["config"]["0.bias"]["use_pickle"] = True
        return json.dumps(entries).encode()

    return {"data/weights/model_weights_config.json": config, "data/weights/weight_1": buffer.getvalue()}


def opaque_constant(marker):
    return {"data/constants/opaque_obj_0": pickle.dumps(Bomb(marker))}


def sample_inputs(marker):
    buffer = io.BytesIO()
    torch.save(((Bomb(marker),), {}), buffer)
    return {"data/sample_inputs/model.pt": buffer.getvalue()}


HOSTILE = {
    "shape expression": (
        lambda marker: in_model(set_expression(f"__import__('pathlib').Path({str(marker)!r}).touch()")),
        "expr_str .* could run as code",
    ),
    "endless power": (lambda _: in_model(set_expression("Pow(Pow(9, 9**9), 9)")), "expr_str .* could run as code"),
    "any function of torch": (lambda _: in_model(set_target("torch.os.system")), "target 'torch.os.system' is nothing"),
    "a library to open": (lambda _: in_model(set_target("torch.ops.load_library")), "target .* could run as code"),
    "a file to map": (
        lambda _: in_model(set_target("torch.ops.aten.from_file.default")),
        "target .* could run as code",
    ),
    "name of an argument": (lambda _: in_model(set_argument_name), "forward_arg_names .* could run as code"),
    "name of an input": (lambda _: in_model(rename_input), "name .* could run as code"),
    "container with a module": (lambda _: in_model(set_container), "in_spec .* could run as code"),
    "pickled weight": (pickled_weight, "weight_1 holds more than tensors, and unpickling it would run code"),
    "pickled object": (opaque_constant, "holds 'data/constants/opaque_obj_0', which is no part"),
    "sample inputs": (sample_inputs, "model.pt holds more than tensors, and unpickling it would run code"),
    "compiled library": (
        lambda _: {"data/aotinductor/model/x.so": b"\x7fELF"},
        "compiled libraries and custom objects",
    ),
    "weights of an old torch": (lambda _: {"data/weights/model.pt": b"x"}, "which is no part of one program"),
    "no graph": (lambda _: {"models/model.json": None}, r"it has no models/model.json\); write it"),
    "no JSON": (lambda _: {"models/model.json": b"{"}, "not a readable exported program"),
    "not a graph": (lambda _: {"models/model.json": b"{}"}, r"cannot load the exported program \("),
    "weight elsewhere": (lambda _: {"data/weights/weight_1": None}, "is said to be in 'data/weights/weight_1'"),
}


@pytest.mark.parametrize(("make", "message"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_program_is_refused_in_one_line_and_runs_nothing(file, tmp_path, monkeypatch, make, message):
    monkeypatch.chdir(tmp_path)
    marker = tmp_path / "owned"
    rewritten(file, make(marker))
    with pytest.raises(LoadError, match=message) as error:
        load_program(file)
    assert "\n" not in str(error.value)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["shape expression", "pickled weight", "sample inputs"])
def test_the_attacks_above_work_on_torch_itself(file, tmp_path, name):
    marker = tmp_path / "owned"
    rewritten(file, HOSTILE[name][0](marker))
    with contextlib.suppress(Exception):  # of what it has run by then
        torch.export.load(file)
    assert marker.exists()


def test_files_that_are_no_program_are_refused_in_one_line(file, tmp_path):
    whole = file.read_bytes()
    for data in (b"", b"hello", whole[: len(whole) // 2], whole[:-10]):
        file.write_bytes(data)
        with pytest.raises(LoadError, match="not an exported program") as error:
            load_program(file)
        assert "\n" not in str(error.value)
    file.write_bytes(whole)
    with pytest.raises(LoadError, match="it is compressed"):
        load_program(rewritten(file, {"extra/zeros": bytes(10**6)}, compression=zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(tmp_path / "other.pt2", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(LoadError, match="not a readable exported program"):
        load_program(tmp_path / "other.pt2")
    with pytest.raises(LoadError, match="is not a file"):
        load_program(tmp_path)


def test_cut_and_flipped_files_are_refused_or_load(file):
    whole = file.read_bytes()
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        data = bytearray(whole)
        for _ in range(4):
            data[int(torch.randint(len(data), (), generator=generator))] ^= 0xFF
        file.write_bytes(data)
        said = ""
        try:
            load_program(file)
        except LoadError as error:
            said = str(error)
        assert "\n" not in said
