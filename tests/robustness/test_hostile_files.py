"""Files made to harm, given to the real command line: one clear line, exit code 1 or 2, nothing written, bounded."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import sys
import time
import zipfile

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from PIL import Image
from support.onnx_files import parsed
from torch import nn

from jumpout_export.exit_codes import FAILED, PASSED, WRONG_USAGE
from jumpout_export.runtime import limits

FACTORY = """
import torch
def model(): return torch.nn.Linear(4, 4)
def tanh(): return torch.nn.Tanh()
def images(): return torch.nn.Conv2d(3, 2, 3)
"""
AGAINST = ["--against", "hostile_factory:tanh", "--input-shape", "2,4"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "hostile_factory.py").write_text(FACTORY)
    (tmp_path / "inner").mkdir()
    yield tmp_path
    sys.modules.pop("hostile_factory", None)


@pytest.fixture
def refused(folder, run):
    """Runs a command that must end with one of `codes` and say `text`, soon, and leave everything as it was."""

    def refused(*arguments, codes, text):
        before, start = tree(folder), time.monotonic()
        code, out, err = run(*arguments)
        assert code in codes, (code, out, err)
        assert "Traceback" not in out + err
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        assert len(errors) == (1 if code == WRONG_USAGE else 0), err
        assert text in " ".join(out.split()) + err, out + err
        assert tree(folder) == before
        assert time.monotonic() - start < 30

    return refused


def tree(folder):
    return sorted((str(path), path.lstat().st_size) for path in folder.rglob("*"))


def model_of(nodes, constants=None):
    return parsed(f"g (float[batch,4] input) => (float[batch,4] output) {{ {nodes} }}", constants, check=False)


def linear():
    return model_of("output = MatMul(input, w)", {"w": np.eye(4, dtype="f4")})


def external(location, **entries):
    model = linear()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, text in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=text)
    return model


def in_two_places():
    model = external("long.bin")
    model.graph.initializer[0].external_data.add(key="location", value="pipe")
    return model


def twice():
    model = linear()
    copy = model.graph.initializer.add()
    copy.CopyFrom(numpy_helper.from_array(np.zeros((4, 4), "f4"), "w"))
    return model


def nested(depth):
    """A node in a graph in an attribute of a node in a graph ..., in bytes: protobuf itself refuses to write it."""

    def field(number, content):
        size, text = len(content), bytearray([number << 3 | 2])
        while size > 127:
            text.append(size & 127 | 128)
            size >>= 7
        return bytes(text) + bytes([size]) + content

    graph = b""
    for _ in range(depth):
        graph = field(1, field(4, b"If") + field(5, field(6, graph)))  # NodeProto's op_type and attribute, its graph
    return linear().SerializeToString() + field(7, graph)


def known_size(operator):
    """input + the sum of 2^40 ones."""
    make = {"ConstantOfShape": "ConstantOfShape(size)", "Expand": "Expand(one, size)"}[operator]
    nodes = f"ones = {make} s = ReduceSum<keepdims = 0>(ones) output = Add(input, s)"
    return model_of(nodes, {"size": np.array([1 << 40]), "one": np.ones(1, "f4")})


def computed_size():
    """The same with a size that is computed from the input: 2^42 or 0 elements."""
    nodes = """
        m = ReduceMax<keepdims = 0>(input)
        never = IsNaN(m)
        always = Not(never)
        k = Cast<to = 7>(always)
        size = Mul(k, huge)
        ones = ConstantOfShape(size)
        s = ReduceSum<keepdims = 0>(ones)
        output = Add(input, s)
    """
    return model_of(nodes, {"huge": np.array([1 << 42])})


def endless():
    """A Loop of 2^63 - 1 rounds."""
    loop = """output = Loop(rounds, true, input) <
        body = body (int64 i, bool c, float[batch,4] v) => (bool c2, float[batch,4] v2) {
            c2 = Identity(c)
            v2 = Tanh(v)
        }
    >"""
    return model_of(loop, {"rounds": np.array((1 << 63) - 1), "true": np.array(True)})


def cyclic():
    return model_of("a = Add(input, b) b = Relu(a) output = Identity(b)")


def steering():
    model = linear()
    model.graph.node[0].name = "\x1b[2J\x1b[31mevil\r\n"
    model.graph.node[0].op_type = "RandomNormalLike"
    del model.graph.node[0].input[1:]
    return model


MODELS = {
    "external data in a pipe": (lambda: external("pipe"), "pipe is no file"),
    "external data in a device": (lambda: external("zero"), "is outside of the model's folder"),
    "external data in two places": (in_two_places, "it says 2 times what its 'location' is"),
    "external data in a folder": (lambda: external("inside"), "inside is no file"),
    "external data cut off": (lambda: external("short.bin"), "onnx"),
    "external data at a negative place": (lambda: external("long.bin", offset="-4096"), "onnx"),
    "external data beyond its end": (lambda: external("long.bin", offset=str(1 << 40), length="64"), "onnx"),
    "external data with NUL in its name": (lambda: external("a\0b"), "is no file name"),
    "an initializer twice": (twice, "w"),
    "a cycle": (cyclic, "topologically sorted"),
    "a constant of 4 TiB": (lambda: known_size("ConstantOfShape"), "ones: [1099511627776], allowed are"),
    "a tensor expanded to 4 TiB": (lambda: known_size("Expand"), "ones: [1099511627776], allowed are"),
    "a name that steers a terminal": (steering, "evil"),
}


@pytest.fixture
def beside(folder):
    """What external data can lead to."""
    inner = folder / "inner"
    os.mkfifo(inner / "pipe")
    (inner / "zero").symlink_to("/dev/zero")
    (inner / "inside").mkdir()
    (inner / "short.bin").write_bytes(bytes(8))
    (inner / "long.bin").write_bytes(bytes(64))
    return inner


@pytest.mark.parametrize("command", ["inspect", "fold", "verify"])
@pytest.mark.parametrize(("make", "text"), MODELS.values(), ids=MODELS.keys())
def test_a_hostile_model_is_refused_with_its_reason(beside, refused, command, make, text):
    (beside / "model.onnx").write_bytes(make().SerializeToString())
    more = {"inspect": [], "fold": ["inner/out.onnx"], "verify": AGAINST}[command]
    refused(command, "inner/model.onnx", *more, codes={FAILED, WRONG_USAGE}, text=text)


@pytest.mark.parametrize("command", ["inspect", "fold", "verify"])
@pytest.mark.parametrize(
    ("content", "text"),
    [
        (linear().SerializeToString()[:-20], "not a readable ONNX model"),
        (b"", "not a readable ONNX model"),
        (nested(1000), "not a readable ONNX model"),
        (b"\x80\x04c\x0abuiltins", "not a readable ONNX model"),
        (None, "is not a file"),
    ],
    ids=["cut off", "empty", "nested 1000 times", "a pickle", "a pipe"],
)
def test_what_is_no_model_is_named(beside, refused, command, content, text):
    path = beside / "model.onnx"
    os.mkfifo(path) if content is None else path.write_bytes(content)
    more = {"inspect": [], "fold": ["inner/out.onnx"], "verify": AGAINST}[command]
    refused(command, "inner/model.onnx", *more, codes={WRONG_USAGE}, text=text)


def test_a_file_that_asks_for_more_memory_than_there_is_fails(folder, refused):
    onnx.save(computed_size(), "model.onnx")
    refused("verify", "model.onnx", *AGAINST, codes={FAILED}, text="it asks for more memory than this machine has free")


@pytest.mark.integration
def test_a_file_that_never_ends_is_stopped(folder, refused, monkeypatch):
    monkeypatch.setattr(limits, "SECONDS", 0.2)
    onnx.save(endless(), "model.onnx")
    refused("verify", "model.onnx", *AGAINST, codes={FAILED}, text="one run takes longer than 0.2 seconds")


def test_limits_leave_the_process_as_it_was_and_a_right_file_alone(folder):
    import resource

    from jumpout_export import verify_onnx

    onnx.save(model_of("output = Tanh(input)"), "model.onnx")
    before = resource.getrlimit(resource.RLIMIT_AS)
    assert verify_onnx("model.onnx", nn.Tanh(), torch.randn(2, 4))
    assert resource.getrlimit(resource.RLIMIT_AS) == before
    with pytest.raises(MemoryError, match="more memory than this machine has free"):
        limits.within_memory(lambda: np.empty(1 << 45, np.uint8))
    with pytest.raises(ZeroDivisionError):
        limits.within_memory(lambda: 1 / 0)
    assert resource.getrlimit(resource.RLIMIT_AS) == before


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("executed",))


def npz(entries, compression=zipfile.ZIP_STORED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return stream.getvalue()


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def lying_header(shape):
    return npy(np.zeros((2, 4), np.float32)).replace(b"(2, 4), }", f"{shape}, }}".encode())


def lying_archive():
    """Says in its directory that an entry is small."""
    data = npz({"inputs.npy": npy(np.zeros((1000, 4), np.float32))}, zipfile.ZIP_DEFLATED)
    size = len(npy(np.zeros((1000, 4), np.float32)))
    return data.replace(struct.pack("<I", size), struct.pack("<I", 64))


ARRAYS = {
    "objects": (lambda: npz({"inputs.npy": npy(np.array([Evil()], dtype=object))}), "cannot be read as plain arrays"),
    "a pickle": (lambda: pickle.dumps(Evil()), "cannot be read as plain arrays"),
    "a header of 32 TB": (lambda: npz({"inputs.npy": lying_header("(1 << 43,)")}), "cannot be read as plain arrays"),
    "a header of 16 GB": (lambda: npz({"inputs.npy": lying_header((1 << 30, 4))}), "cannot be read as plain arrays"),
    "a header of a negative size": (lambda: npz({"inputs.npy": lying_header((-2, 4))}), "cannot be read"),
    "a header with code": (lambda: npz({"inputs.npy": lying_header("__import__('os')")}), "cannot be read"),
    "an archive that lies": (lying_archive, "cannot be read as plain arrays"),
    "a path out of the archive": (lambda: npz({"../inputs.npy": npy(np.zeros((2, 4)))}), "must hold an array `inputs`"),
    "text": (lambda: b"inputs", "cannot be read as plain arrays"),
    "no numbers": (lambda: npz({"inputs.npy": npy(np.array(["a", "b"]))}), "arrays must be numbers"),
}


@pytest.mark.parametrize(("make", "text"), ARRAYS.values(), ids=ARRAYS.keys())
def test_hostile_arrays_are_refused_and_nothing_in_them_is_executed(folder, refused, make, text):
    (folder / "data.npz").write_bytes(make())
    refused("export", "hostile_factory:model", "out.onnx", "--data", "data.npz", codes={WRONG_USAGE}, text=text)


@pytest.mark.integration
def test_an_archive_that_unpacks_to_too_much_is_refused_before_it_is_unpacked(folder, refused, monkeypatch):
    monkeypatch.setattr("jumpout_export.loading.data._MAX_ARRAY_BYTES", 1 << 30)
    with (
        zipfile.ZipFile("data.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("inputs.npy", "w") as entry,
    ):
        for _ in range(65):
            entry.write(bytes(1 << 24))
    command = ["export", "hostile_factory:model", "out.onnx", "--data", "data.npz"]
    refused(*command, codes={WRONG_USAGE}, text="data.npz unpacks to 1 GiB; at most 1 are read")


def png(width=8, height=8):
    stream = io.BytesIO()
    Image.new("RGB", (width, height)).save(stream, "png")
    return stream.getvalue()


def claims(width, height):
    """A PNG whose header says another size."""
    import zlib

    data = bytearray(png())
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


IMAGES = {
    "text": b"no image",
    "empty": b"",
    "cut off": png(64, 64)[:-30],
    "a bomb": claims(60000, 60000),
    "a negative size": claims(0xFFFFFFFF, 8),
    "a wrong checksum": png()[:20] + b"\xff" + png()[21:],
    "a pipe": None,
}


@pytest.mark.parametrize("content", IMAGES.values(), ids=IMAGES.keys())
def test_hostile_images_are_refused_with_their_name(folder, refused, content):
    (folder / "images" / "class").mkdir(parents=True)
    path = folder / "images" / "class" / "evil.png"
    os.mkfifo(path) if content is None else path.write_bytes(content)
    command = ["export", "hostile_factory:images", "out.onnx", "--data", "images"]
    refused(*command, codes={WRONG_USAGE}, text="evil.png cannot be read")


def safetensors(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(shape, offsets, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


WEIGHTS = {
    "a header beyond the end": struct.pack("<Q", 1 << 62) + b"{}",
    "a header cut off": safetensors({"weight": tensor([4, 4], [0, 64])})[:-4],
    "data beyond the end": safetensors({"weight": tensor([4, 4], [0, 64])}, bytes(8)),
    "overlapping tensors": safetensors({"weight": tensor([4], [0, 16]), "bias": tensor([4], [8, 24])}, bytes(24)),
    "a size that overflows": safetensors({"weight": tensor([1 << 62, 8], [0, 0])}),
    "nested 10,000 times": safetensors(b"[" * 10_000),
    "no JSON": safetensors(b"\xff\xfe"),
}


@pytest.mark.parametrize("content", WEIGHTS.values(), ids=WEIGHTS.keys())
def test_hostile_weights_are_refused(folder, refused, content):
    (folder / "w.safetensors").write_bytes(content)
    command = ["export", "hostile_factory:model", "out.onnx", "--weights", "w.safetensors", "--input-shape", "2,4"]
    refused(*command, codes={WRONG_USAGE}, text="weights w.safetensors cannot be read as tensors only")


def test_what_the_tests_look_for_they_find(folder, refused):
    onnx.save(model_of("output = Tanh(input)"), "model.onnx")
    with pytest.raises(AssertionError):
        refused("verify", "model.onnx", *AGAINST, codes={FAILED, WRONG_USAGE}, text="")
    with pytest.raises(AssertionError):
        refused("fold", "model.onnx", "out.onnx", codes={PASSED}, text="")  # it writes a file
