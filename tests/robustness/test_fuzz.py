"""Mutated files: never a traceback, never a crash, never a pass for a wrong file, nothing written.

The mutations run in a process of their own, so that a crash of a native library is seen and named.
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
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
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

SEED = 7
COUNTS = {"onnx": 1500, "npz": 400, "safetensors": 400, "pt2": 300}
SECONDS = 150
# What the package says it raises, all of which end the command line with one line.
DOCUMENTED = (JumpoutExportError, ValueError, TypeError)


def fuzzed(kind, folder):
    return subprocess.run(
        [sys.executable, __file__, kind, str(SEED), str(COUNTS.get(kind, 1)), str(folder)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.parametrize("kind", COUNTS)
def test_mutated_files_end_in_a_verdict_or_a_documented_error(kind, tmp_path):
    done = fuzzed(kind, tmp_path)
    assert done.returncode == 0, f"mutation {(tmp_path / 'last').read_text()}: {done.returncode}\n{done.stderr[-3000:]}"
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["problems"] == []
    assert result["verdicts"]["refused"] > COUNTS[kind] // 4  # most mutations are not harmless
    assert result["verdicts"]["passed"] > 0  # and the unharmed files of the corpus pass


def test_a_crash_is_seen_with_the_mutation_that_made_it(tmp_path):
    assert fuzzed("crash", tmp_path).returncode == -signal.SIGSEGV
    assert (tmp_path / "last").read_text() == "the one that crashes"


def test_what_the_fuzzer_looks_for_it_finds(tmp_path):
    fuzz = Fuzz(tmp_path)
    fuzz.start("7")
    (tmp_path / "last").unlink()

    def raises(error):
        raise error

    for action in (
        lambda: raises(ValueError("one line")),
        lambda: raises(KeyError("undocumented")),
        lambda: raises(ValueError("two\nlines")),
        lambda: (tmp_path / "left behind").write_text(""),
    ):
        fuzz.check(action)
    fuzz.expect(False, "another network")
    assert fuzz.problems == [
        "7: KeyError: 'undocumented'",
        "7: not one line: ValueError('two\\nlines')",
        "7: wrote ['left behind']",
        "7: another network",
    ]
    assert fuzz.verdicts == {"passed": 0, "refused": 4}


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


TEXTS = (b"Dropout", b"RandomNormal", b"Relu", b"x", b"r", b"true", b"/etc/hostname", b"../x")
OPERATORS = ("Relu", "Dropout", "Add", "Mul", "Identity", "Loop", "Conv", "RandomNormalLike", "Neg", "Sub")


def mutated(data: bytes, rng: random.Random) -> bytes:
    """One to three changes: bits, bytes, pieces left out, doubled, moved, or the end cut off."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        start = rng.randrange(len(out)) if out else 0
        stop = min(len(out), start + rng.choice((1, 1, 2, 4, 8, 64)))
        match rng.randrange(8):
            case 0:
                out[start:stop] = bytes(byte ^ (1 << rng.randrange(8)) for byte in out[start:stop])
            case 1:
                out[start:stop] = rng.randbytes(stop - start)
            case 2:
                del out[start:stop]
            case 3:
                out[start:start] = rng.randbytes(stop - start)
            case 4:
                out[start:stop] = bytes([rng.choice((0, 0x7F, 0x80, 0xFF))]) * (stop - start)
            case 5:
                piece = out[start:stop]
                place = rng.randrange(len(out) + 1)
                out[place:place] = piece
            case 6:
                out = out[:start]
            case 7:
                text = rng.choice(TEXTS)
                out[start : start + len(text)] = text
    return bytes(out)


def restructured(data: bytes, rng: random.Random) -> bytes:
    """A change of the protobuf's fields, so that the file stays readable."""
    model = onnx.ModelProto.FromString(data)
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    nodes += [n for node in model.graph.node for attribute in node.attribute for n in attribute.g.node]
    node, tensor = rng.choice(nodes), rng.choice(model.graph.initializer)
    names = [name for n in nodes for name in (*n.input, *n.output)] + [tensor.name, "", "nowhere"]
    match rng.randrange(12):
        case 0:
            node.op_type = rng.choice(OPERATORS)
        case 1 if node.input:
            node.input[rng.randrange(len(node.input))] = rng.choice(names)
        case 2 if node.output:
            node.output[rng.randrange(len(node.output))] = rng.choice(names)
        case 3:
            node.domain = rng.choice(("ai.onnx.ml", "com.microsoft", "local", "nobody", "ai.onnx"))
        case 4:
            tensor.dims[:] = rng.choices((0, 1, 3, 5, -1, 1 << 20, 1 << 40, (1 << 63) - 1), k=rng.randrange(4))
        case 5:
            tensor.data_type = rng.randrange(30)
        case 6:
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            place = rng.choice(("../x", "/etc/hostname", "weights", "a\0b", "last"))
            tensor.external_data.add(key="location", value=place)
            tensor.external_data.add(key=rng.choice(("offset", "length")), value=rng.choice(("-1", "x", str(1 << 62))))
        case 7:
            axes = model.graph.input[0].type.tensor_type.shape.dim
            rng.choice(axes).dim_value = rng.choice((0, -5, 1 << 40, 2, 6))
        case 8:
            model.opset_import[0].version = rng.choice((-1, 0, 1, 6, 7, 13, 17, 22, 30, 1 << 40))
        case 9:
            del model.graph.node[rng.randrange(len(model.graph.node))]
        case 10:
            copy = onnx.NodeProto.FromString(node.SerializeToString())
            model.graph.node.add().CopyFrom(copy)
        case 11:
            attribute = node.attribute.add(name=rng.choice(("transB", "training_mode", "to", "axis", "seed")))
            attribute.type, attribute.i = rng.randrange(14), rng.choice((0, 1, -1, 1 << 40))
    return model.SerializeToString()


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
    model, images = network(), torch.randn(3, 6)
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
            report = fuzz.check(lambda: verify_onnx(path, model, images))
            if report:
                got, rows = run(path, x)
                want = model(torch.from_numpy(x[:rows])).detach().numpy()
                fuzz.expect(same(got, [want]), "verify passed another network")
        if action == "fold":
            report = fuzz.check(lambda: fold_onnx(path, out), ["out.onnx"])
            if report and name == "dropout":
                plain = ReferenceEvaluator(onnx.load(path), new_ops=[Dropout])
                got, rows = run(out, x)
                want = plain.run(None, {plain.input_names[0]: x[:rows]})
                fuzz.expect(same(got, want), "the folded file is another network")
            out.unlink(missing_ok=True)


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
            fuzz.expect(np.array_equal(read.inputs.numpy(), inputs), "other images were read")


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


def with_changed_entry(data: bytes, rng: random.Random) -> bytes:
    """The archive with one of its files mutated and every checksum right."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as before, zipfile.ZipFile(stream, "w") as after:
        names = before.namelist()
        model = next(name for name in names if name.endswith("models/model.json"))
        chosen = rng.choice((model, model, rng.choice(names)))
        for name in names:
            content = before.read(name)
            after.writestr(name, mutated(content, rng) if name == chosen else content)
    return stream.getvalue()


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
