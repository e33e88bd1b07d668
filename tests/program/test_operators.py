"""A program from a file may call what computes tensors, by namespace and schema; what else is registered is refused."""

import io
import json
import zipfile

import pytest
import torch
from support.programs import exported
from torch import nn

from jumpout_export import Jumpout
from jumpout_export.errors import LoadError
from jumpout_export.program.file import load_program
from jumpout_export.program.operators import is_allowed

REFUSED = [
    "torch.ops.aten.save.default",  # of TorchScript alone: writes a file
    "torch.ops.aten.save",
    "torch.ops.aten.from_file.default",
    "torch.ops.aten.from_file.out",
    "torch.ops.aten._print.default",
    "torch.ops.aten.set_.source_Storage",
    "torch.ops.aten.quantized_lstm.input",  # takes objects of TorchScript
    "torch.ops.aten.there_is_none.default",
    "torch.ops.prim.Print.default",
    "torch.ops.profiler._record_function_enter_new.default",
    "torch.ops.quantized.add.default",
    "torch.ops.inductor._alloc_from_pool.default",
    "torch.ops.symm_mem.get_remote_tensors.default",
    "torch.ops.higher_order.call_torchbind",
    "torch.ops.higher_order.aoti_call_delegate",
    "torch.ops.higher_order.inline_asm_elementwise",
    "torch.ops.higher_order.print",
    "torch.ops.load_library",
    "torch.os.system",
    "torch.sym_sum.__globals__",
    "_operator.methodcaller",
    "_operator.attrgetter",
    "_operator.call",
    "math.__loader__",
]
ALLOWED = [
    "torch.ops.aten.add.Tensor",
    "torch.ops.aten.gelu.default",
    "torch.ops.aten.div.Tensor_mode",
    "torch.ops.aten.bernoulli.p",
    "torch.ops.aten._assert_scalar.default",
    "torch.ops.aten.sym_size.int",
    "torch.ops.prims.convert_element_type.default",
    "torch.ops.jumpout.forward.default",
    "torch.ops.higher_order.cond",
    "torch.ops.higher_order.wrap_with_set_grad_enabled",
    "_operator.floordiv",
    "math.trunc",
    "torch.sym_float",
]


@pytest.mark.parametrize("target", REFUSED)
def test_an_operator_that_could_lead_out_of_the_program_is_refused(target):
    assert not is_allowed(target)


@pytest.mark.parametrize("target", ALLOWED)
def test_an_operator_that_computes_is_allowed(target):
    assert is_allowed(target)


def test_nearly_all_of_torchs_own_operators_are_allowed():
    """Whatever a network may be made of; those left out take files, storages, streams or objects of TorchScript."""
    names = [name.partition("::") for name in torch._C._dispatch_get_all_op_names()]
    own = [f"{space}.{name if '.' in name else f'{name}.default'}" for space, _, name in names if space == "aten"]
    refused = [name for name in own if not is_allowed(f"torch.ops.{name}")]
    assert len(refused) < 0.01 * len(own), refused


def with_graph(path, change):
    """Changes the graph's JSON in an exported program."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    name = next(name for name in entries if name.endswith("models/model.json"))
    model = json.loads(entries[name])
    change(model["graph_module"]["graph"])
    entries[name] = json.dumps(model).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for entry, data in entries.items():
            archive.writestr(entry, data)
    return path


def call(target):
    def change(graph):
        graph["nodes"][-1]["target"] = target

    return change


def hand_on(target):
    """The operator is not called, but given to one that calls it."""

    def change(graph):
        graph["nodes"][-1]["target"] = "torch.ops.higher_order.auto_functionalized"
        graph["nodes"][-1]["inputs"].insert(0, {"name": "", "arg": {"as_operator": target}, "kind": 1})

    return change


@pytest.mark.parametrize("how", [call, hand_on])
@pytest.mark.parametrize("target", ["torch.ops.aten.save.default", "torch.ops.tests_hostile.write.default"])
def test_an_operator_that_is_registered_in_the_process_and_writes_a_file_is_refused(file, how, target):
    library = torch.library.Library("tests_hostile", "FRAGMENT")
    library.define("write(Tensor x, str filename) -> Tensor")
    try:
        with pytest.raises(LoadError, match=rf"{target}' could run as code, or reach files: .* torch\.export\.load"):
            load_program(with_graph(file, how(target)))
    finally:
        library._destroy()


def test_a_file_nested_as_deep_as_json_is_read_is_refused_in_one_line(file):
    def change(graph):
        deep: list = []
        for _ in range(900):
            deep = [deep]
        graph["nodes"][-1]["inputs"] = deep

    with pytest.raises(LoadError, match="exported program") as error:
        load_program(with_graph(file, change))
    assert "\n" not in str(error.value)


class Uses(nn.Module):
    """Control flow, a cast for a part, arithmetic on sizes and operators with text among their arguments."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            y = self.fc(x)
        y = torch.cond(x.sum() > 0, lambda y: y + 1, lambda y: y - 1, (y,))
        y = torch.div(y, 3, rounding_mode="floor") + nn.functional.gelu(y, approximate="tanh")
        return y * (x.shape[0] // 2)


@pytest.mark.parametrize("make", [Uses, lambda: nn.Sequential(nn.Linear(8, 8), Jumpout(), nn.BatchNorm1d(8))])
@pytest.mark.integration
def test_a_program_of_torchs_own_operators_loads_and_computes_what_it_did(make, tmp_path):
    torch.manual_seed(0)
    x = torch.randn(4, 8)
    program = exported(make(), False, x)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    (tmp_path / "net.pt2").write_bytes(buffer.getvalue())
    assert torch.equal(load_program(tmp_path / "net.pt2").module()(x), program.module()(x))
