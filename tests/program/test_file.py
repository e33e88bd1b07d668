"""Hostile, cut and changed program files are refused in one line, and nothing of them runs."""

import contextlib
import io
import json
import os
import pickle
import zipfile

import pytest
import torch

from jumpout_export.errors import LoadError
from jumpout_export.program.file import load_program


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
