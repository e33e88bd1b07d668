"""Runs mutated files through the package, and prints what went wrong.

It runs in a process of its own, so that a crash of a native library is seen and named.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import json
import os
import random
import resource
import signal
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from safetensors.torch import save
from torch import nn

from jumpout_export import inspect_onnx, loading, verify_onnx
from jumpout_export.errors import JumpoutExportError
from jumpout_export.fold.file.fold_file import fold_onnx
from jumpout_export.program.file import load_program
from support.mutations import mutated, restructured, with_changed_entry

# What the package says it raises, all of which end the command line with one line.
DOCUMENTED = (JumpoutExportError, ValueError, TypeError)


class Dropout(OpRun):
    """As it is in eval mode."""

    op_domain = ""

    def _run(self, x, *_, **__):
        return (x,)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))


def network() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def value(name, shape=("batch", 6), kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def array(values, name):
    return numpy_helper.from_array(np.asarray(values), name)


def net_file(between=(), extra=(), functions=(), opsets=()) -> onnx.ModelProto:
    """The network as ONNX; `between` computes `d` from `r`."""
    net = network()
    weights = [
        array(tensor.detach().numpy(), name)
        for name, tensor in (("a.w", net.a.weight), ("a.b", net.a.bias), ("b.w", net.b.weight), ("b.b", net.b.bias))
    ]
    nodes = [
        helper.make_node("Gemm", ["x", "a.w", "a.b"], ["h"], name="first", transB=1),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        *between,
        helper.make_node("Gemm", ["d" if between else "r", "b.w", "b.b"], ["output"], name="last", transB=1),
    ]
    graph = helper.make_graph(nodes, "net", [value("x")], [value("output", ("batch", 3))], [*weights, *extra])
    opsets = [helper.make_opsetid("", 18), *opsets]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=list(functions))


def corpus() -> dict[str, tuple[bytes, str]]:
    """Files by name, and what is to be done with their mutations."""
    true, half = array(True, "true"), array(np.float32(0.5), "half")
    dropout = helper.make_node("Dropout", ["r", "half", "true"], ["d"], name="drop")
    mask = [
        helper.make_node("RandomUniformLike", ["r"], ["u"], name="noise"),
        helper.make_node("Less", ["u", "half"], ["kept"], name="compare"),
        helper.make_node("Cast", ["kept"], ["m"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Div", ["m", "half"], ["scaled"], name="scale"),
        helper.make_node("Mul", ["r", "scaled"], ["d"], name="drop"),
    ]
    then = helper.make_graph([dropout], "then", [], [value("d", ("batch", 5))])
    other = helper.make_graph([helper.make_node("Identity", ["r"], ["e"])], "else", [], [value("e", ("batch", 5))])
    branch = helper.make_node("If", ["true"], ["d"], name="branch", then_branch=then, else_branch=other)
    relu = helper.make_node("Relu", ["r"], ["d"])
    body = helper.make_function("local", "Block", ["r"], ["d"], [relu], [helper.make_opsetid("", 18)])
    call = helper.make_node("Block", ["r"], ["d"], domain="local", name="call")
    local = helper.make_opsetid("local", 1)
    return {
        "clean": (net_file().SerializeToString(), "verify"),
        "function": (net_file([call], functions=[body], opsets=[local]).SerializeToString(), "verify"),
        "dropout": (net_file([dropout], [true, half]).SerializeToString(), "fold"),
        "mask": (net_file(mask, [half]).SerializeToString(), "fold"),
        "branch": (net_file([branch], [true, half]).SerializeToString(), "fold"),
    }


class Fuzz:
    """Runs mutations and keeps what went wrong."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.problems: list[str] = []
        self.verdicts = {"passed": 0, "refused": 0}
        self.raised: dict[str, int] = {}
        self.label = ""

    def start(self, label: str) -> None:
        """Notes what is run now, where it is found after a crash."""
        self.label = label
        (self.folder / "last").write_text(label)

    def expect(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.problems.append(f"{self.label}: {otherwise}")

    def check(self, action, allowed=()):
        """Calls `action`; returns its result, None if it raised what it may. Only `allowed` may appear beside."""
        before = set(os.listdir(self.folder))
        result = None
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                result = action()
        except DOCUMENTED as error:
            self.raised[type(error).__name__] = self.raised.get(type(error).__name__, 0) + 1
            if len(str(error).splitlines()) != 1:
                self.problems.append(f"{self.label}: not one line: {error!r}")
        except BaseException as error:
            self.problems.append(f"{self.label}: {type(error).__name__}: {error}")
        written = set(os.listdir(self.folder)) - before
        if written - set(allowed if result else ()):
            self.problems.append(f"{self.label}: wrote {sorted(written)}")
        self.verdicts["passed" if result else "refused"] += 1
        return result


def run(path, x):
    """What the file makes of x, or of as many of its rows as it takes; None if it takes none."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options)
    (entry,) = session.get_inputs()
    for rows in (entry.shape[0],) if isinstance(entry.shape[0], int) else (len(x), 1, 2, 3):
        with contextlib.suppress(Exception):
            return session.run(None, {entry.name: x[:rows]}), rows
    return None


def same(one, two):
    return len(one) == len(two) and all(
        a.shape == b.shape and np.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)
        for a, b in zip(one, two, strict=True)
    )


def fuzz_onnx(fuzz: Fuzz, rng: random.Random, count: int) -> None:
    files = corpus()
    path, out = fuzz.folder / "model.onnx", fuzz.folder / "out.onnx"
    (fuzz.folder / "weights").write_bytes(bytes(64))
    path.write_bytes(b"")
    x = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
    model, samples = network(), torch.randn(3, 6)
    for number in range(count):
        name = list(files)[number % len(files)]
        data, action = files[name]
        if number >= len(files):
            data = (mutated if number % 2 else restructured)(data, rng)
        fuzz.start(f"{number} ({name})")
        path.write_bytes(data)
        inspected = fuzz.check(lambda: inspect_onnx(path))
        if inspected and (once := run(path, x)):
            fuzz.expect(same(once[0], run(path, x)[0]), "inspect passed a random file")
        if action == "verify" and (inspected or number % 16 == 0):
            report = fuzz.check(lambda: verify_onnx(path, model, samples))
            if report:
                got, rows = run(path, x)
                want = model(torch.from_numpy(x[:rows])).detach().numpy()
                fuzz.expect(same(got, [want]), "verify passed another network")
        if action == "fold":
            report = fuzz.check(lambda: fold_onnx(path, out), ["out.onnx", "out.manifest.json"])
            if report and name == "dropout":
                plain = ReferenceEvaluator(onnx.load(path), new_ops=[Dropout])
                got, rows = run(out, x)
                want = plain.run(None, {plain.input_names[0]: x[:rows]})
                fuzz.expect(same(got, want), "the folded file is another network")
            out.unlink(missing_ok=True)
            out.with_name("out.manifest.json").unlink(missing_ok=True)


def fuzz_npz(fuzz: Fuzz, rng: random.Random, count: int) -> None:
    path = fuzz.folder / "data.npz"
    path.write_bytes(b"")
    stream = io.BytesIO()
    inputs = np.random.default_rng(0).normal(size=(9, 2, 3)).astype(np.float32)
    np.savez(stream, inputs=inputs, labels=np.arange(9))
    packed = io.BytesIO()
    np.savez_compressed(packed, inputs=inputs, labels=np.arange(9))
    for number in range(count):
        data = (stream, packed)[number % 2].getvalue()
        fuzz.start(str(number))
        path.write_bytes(data if number < 2 else mutated(data, rng))
        read = fuzz.check(lambda: loading.load_data(str(path), 4))
        if read:
            fuzz.expect(np.array_equal(read.inputs.numpy(), inputs), "other samples were read")


def fuzz_safetensors(fuzz: Fuzz, rng: random.Random, count: int) -> None:
    path = fuzz.folder / "weights.safetensors"
    path.write_bytes(b"")
    data = save({name: tensor.clone() for name, tensor in network().state_dict().items()})
    for number in range(count):
        fuzz.start(str(number))
        path.write_bytes(data if number == 0 else mutated(data, rng))
        fuzz.check(lambda: loading.load_weights(network(), path) or True)


def fuzz_pt2(fuzz: Fuzz, rng: random.Random, count: int) -> None:
    path = fuzz.folder / "program.pt2"
    torch.export.save(torch.export.export(network().eval(), (torch.randn(3, 6),)), path)
    data = path.read_bytes()
    for number in range(count):
        fuzz.start(str(number))
        changed = (mutated, with_changed_entry)[number % 2]
        path.write_bytes(data if number == 0 else changed(data, rng))
        fuzz.check(lambda: load_program(path))


def fuzz_crash(fuzz: Fuzz, *_) -> None:
    fuzz.start("the one that crashes")
    signal.raise_signal(signal.SIGSEGV)


def main(kind: str, seed: str, count: str, folder: str) -> None:
    faulthandler.enable()
    # A file that asks for terabytes must fail on its own, not take the machine with it.
    resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
    torch.set_num_threads(1)
    fuzz = Fuzz(Path(folder))
    globals()[f"fuzz_{kind}"](fuzz, random.Random(int(seed)), int(count))
    print(json.dumps({"problems": fuzz.problems[:20], "verdicts": fuzz.verdicts, "raised": fuzz.raised}))


if __name__ == "__main__":
    main(*sys.argv[1:])
