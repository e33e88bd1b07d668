"""A folder with what was verified, its report and keys."""

import hashlib
from types import SimpleNamespace

import numpy as np
import pytest
from support.attested import DATA, GOLDEN, MODEL, make_keys, report_of


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """An ONNX file with its weights in a second one, golden data, the report of a verification, and a pair of keys."""
    from onnx import TensorProto, helper, save

    monkeypatch.chdir(tmp_path)
    weights = np.arange(4, dtype=np.float32).tobytes()
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": DATA, "offset": "0", "length": str(len(weights))}.items():
        tensor.external_data.add(key=key, value=value)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], [tensor])
    save(helper.make_model(graph), MODEL)
    (tmp_path / DATA).write_bytes(weights)
    (tmp_path / GOLDEN[0]).parent.mkdir(parents=True)
    for name in GOLDEN:
        (tmp_path / name).write_bytes(name.encode())
    files = {name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in (MODEL, DATA, *GOLDEN)}

    def write(name="report.json", **changes):
        values = {"sha256": files[MODEL], "data_files": {DATA: 16}, "data_sha256": {DATA: files[DATA]}}
        (tmp_path / name).write_text(report_of(**{**values, **changes}).model_dump_json())

    write()
    make_keys("key.pem", "public.pem", "-algorithm", "ed25519")
    return SimpleNamespace(folder=tmp_path, files=files, write=write)
