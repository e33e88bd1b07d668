"""The defects of docs/false-greens.md, each as a model; some need a converter led astray."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def rows() -> Tensor:
    """Returns four inputs, (4, 16)."""
    return torch.randn(4, 16)


@dataclass(frozen=True)
class Case:
    """A defect, how it was made, and what of ours is asked about it.

    Attributes:
        title: the defect.
        made: how it was made, for the page.
        model: returns the model as a user would hand it over.
        ours: `export` gives the model to `export_onnx`, `verify` gives the file that torch wrote to `verify_onnx`.
        check: our check that must fail, or the error it raises; empty where ours exports the eval network and says so.
        verdict: of that check; with a warning the report passes.
        says: what the check's or the note's text must hold.
        example: the inputs torch exports and verifies with.
        options: further arguments of `torch.onnx.export`.
        ours_options: further arguments of `export_onnx`.
        edit: changes the graph that torch's converter made, before torch verifies it.
        green: whether torch is expected to pass it.
    """

    title: str
    made: str
    model: Callable[[], nn.Module]
    ours: str
    check: str
    says: str
    example: Callable[[], Tensor] = rows
    options: Callable[[], dict[str, Any]] = dict
    ours_options: dict[str, Any] = field(default_factory=dict)
    edit: Callable[[Any], None] | None = None
    green: bool = True
    verdict: str = "fail"


class Classifier(nn.Module):
    """256 hidden units under noise and a softmax over 100 classes: the noise moves no probability by a tenth."""

    def __init__(self, noise: nn.Module) -> None:
        super().__init__()
        self.first, self.noise, self.last = nn.Linear(16, 256), noise, nn.Linear(256, 100)
        nn.init.normal_(self.last.weight, std=0.01)  # as torchvision starts the last layer of VGG and MobileNet

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.last(self.noise(torch.relu(self.first(x)))).softmax(1)


class Erf(nn.Module):
    """A layer whose operator the cases translate wrongly."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return torch.erf(x)


class Logarithm(nn.Module):
    """Is NaN where x is negative."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return torch.log(x)


class Mask(nn.Module):
    """A hand-written dropout that never looks at `self.training`."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return x * (torch.rand_like(x) > 0.02) / 0.98


class Baked(nn.Module):
    """Has the example's batch size in a shape."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return x.view(4, 16).tanh()


class Branch(nn.Module):
    """Takes another path for small batches."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return x.tanh() if len(x) < 4 else x.sigmoid()


class Place(nn.Module):
    """Treats the fifth image unlike the others."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.last(x) * (1 + (torch.arange(x.shape[0]) == 4)[:, None])


class LogSigmoid(nn.Module):
    """Logarithms of probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return nn.functional.logsigmoid(self.last(x))


def dead() -> nn.Module:
    """Returns a network whose units are off for every input."""
    model = nn.Sequential(nn.Linear(16, 4), nn.ReLU()).eval()
    nn.init.constant_(model[0].bias, -100.0)
    return model


def nan_weight() -> nn.Module:
    """Returns a network with one weight that is NaN, as a diverged training leaves."""
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    with torch.no_grad():
        model[2].bias.fill_(float("nan"))
    return model


def dropout_in_train_mode() -> nn.Module:
    """Returns a network under `eval()` whose dropout was set to train() again."""
    model = Classifier(nn.Dropout(0.05)).eval()
    model.noise.train()
    return model


def batchnorm_in_train_mode() -> nn.Module:
    """Returns a network under `eval()` whose BatchNorm was set to train(), with the example's own statistics."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=1.0))
    model(images())
    model.eval()
    model[1].train()
    model[1].momentum = 0.1
    return model


def images() -> Tensor:
    """Returns 16 images, the same each time."""
    return torch.randn(16, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def translated(name: str) -> Callable[[], dict[str, Any]]:
    """Returns options of torch.onnx.export with a wrong translation of erf."""

    def options() -> dict[str, Any]:
        from onnxscript import opset18 as op

        def first_row(self):
            zero, one = op.Constant(value_ints=[0]), op.Constant(value_ints=[1])
            return op.Slice(op.Erf(self), zero, one, zero)

        def in_double(self):
            return op.Cast(op.Erf(self), to=11)

        return {"custom_translation_table": {torch.ops.aten.erf.default: {"row": first_row, "double": in_double}[name]}}

    return options


def open_batch(kind: str) -> Callable[[], dict[str, Any]]:
    """Returns options of torch.onnx.export that ask for an open batch axis."""

    def options() -> dict[str, Any]:
        dim = torch.export.Dim.AUTO if kind == "auto" else torch.export.Dim("batch")
        return {"dynamic_shapes": {"x": {0: dim}}}

    return options


def last_node_first(model: Any) -> None:
    """Puts the last node of the graph before all others: ONNX asks for topological order."""
    nodes = list(model.graph)
    model.graph.remove(nodes[-1])
    model.graph.insert_before(nodes[0], nodes[-1])


def changed_row(model: Any) -> None:
    """Changes a row of the embedding that the example does not read."""
    import onnx_ir

    value = next(value for value in model.graph.initializers.values() if list(value.shape) == [50, 4])
    table = value.const_value.numpy().copy()
    table[41] += 1
    value.const_value = onnx_ir.tensor(table)


def doubled_from_64(model: Any) -> None:
    """Doubles the output where a batch has 64 images or more."""
    import onnx_ir

    graph, output = model.graph, model.graph.outputs[0]
    made = {"limit": np.int64(64), "zero": np.int64(0), "one": np.float32(1), "two": np.float32(2)}
    values = {name: onnx_ir.val(name, const_value=onnx_ir.tensor(array, name=name)) for name, array in made.items()}
    for value in values.values():
        graph.register_initializer(value)
    last = output
    for name, inputs in (
        ("Shape", [graph.inputs[0]]),
        ("Gather", [None, values["zero"]]),
        ("GreaterOrEqual", [None, values["limit"]]),
        ("Where", [None, values["two"], values["one"]]),
        ("Mul", [None, output]),
    ):
        node = onnx_ir.node(name, [last if one is None else one for one in inputs])
        graph.append(node)
        last = node.outputs[0]
    last.name, last.shape, last.type = "doubled", output.shape, output.type
    output.name, last.name = "undoubled", output.name
    graph.outputs[0] = last


CASES = {
    "nan weights": Case(
        "all outputs NaN",
        "a weight is NaN, as a diverged training leaves it",
        nan_weight,
        "export",
        "parameters",
        "has 4 non-finite of 4 values",
    ),
    "nan outputs": Case(
        "some outputs NaN",
        "the logarithm of negative numbers; all weights are finite",
        lambda: Logarithm().eval(),
        "verify",
        "cpu/off/finite",
        "NaN or infinite values",
    ),
    "shape": Case(
        "shape (1, 4) where PyTorch has (2, 4)",
        "a translation of erf that keeps the first row only (`custom_translation_table`); the rows are equal",
        lambda: Erf().eval(),
        "verify",
        "cpu/off/outputs",
        "is float32[1, 4], in PyTorch it is float32[2, 4]",
        example=lambda: torch.randn(1, 4).repeat(2, 1),
        options=translated("row"),
    ),
    "dtype": Case(
        "float64 where PyTorch has float32",
        "a translation of erf that casts to double (`custom_translation_table`)",
        lambda: Erf().eval(),
        "verify",
        "cpu/off/outputs",
        "is float64[4, 16], in PyTorch it is float32[4, 16]",
        options=translated("double"),
    ),
    "checker": Case(
        "a graph that `onnx.checker` rejects",
        "the converter's graph with its last node put first; ONNX Runtime sorts it again, others refuse it",
        lambda: nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)).eval(),
        "verify",
        "file/onnx checker",
        "topologically sorted",
        edit=last_node_first,
    ),
    "Dim": Case(
        "a batch size that is baked in",
        '`Dim("batch")` asks for an open one, the model holds `x.view(4, 16)`',
        lambda: Baked().eval(),
        "export",
        "convert",
        "fixes its batch size",
        options=open_batch("dim"),
    ),
    "Dim.AUTO": Case(
        "an open batch size that is right at small ones only",
        "`Dim.AUTO`, and the model takes another path from 4 images on; the example has 2",
        lambda: Branch().eval(),
        "verify",
        "cpu/off/batch=17/worst error",
        "output `output`",
        example=lambda: torch.randn(2, 16),
        options=open_batch("auto"),
    ),
    "64 images": Case(
        "a file that is right for fewer than 64 images only",
        "the converter's graph with its output doubled where the batch has 64 images or more; the example has 2",
        lambda: nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)).eval(),
        "verify",
        "cpu/off/batch=64/worst error",
        "output `",
        example=lambda: torch.randn(2, 16),
        options=lambda: {"dynamic_shapes": {"input": {0: "batch"}}},
        edit=doubled_from_64,
    ),
    "place": Case(
        "one image of a batch treated unlike the others",
        "the model doubles its fifth image; the example has 2",
        lambda: Place().eval(),
        "export",
        "batch independence",
        "of image 4",
        example=lambda: torch.randn(2, 16),
        options=lambda: {"dynamic_shapes": {"x": {0: "batch"}}},
    ),
    "dead": Case(
        "an output that is the same for every input",
        "a ReLU behind biases of -100: any weights pass",
        dead,
        "export",
        "outputs move",
        "is the same for every input",
        verdict="not_run",
    ),
    "large logits": Case(
        "infinity where PyTorch is finite",
        "torch translates logsigmoid as the logarithm of a sigmoid, which is 0 for logits of -100",
        lambda: LogSigmoid().eval(),
        "export",
        "magnitudes",
        "NaN or infinite",
        verdict="warning",
    ),
    "dropout child": Case(
        "a Dropout in train mode below `model.eval()`",
        "`model.noise.train()` was forgotten",
        dropout_in_train_mode,
        "export",
        "",
        "in train mode: `noise`; the eval network was taken",
    ),
    "hidden dropout": Case(
        "training Dropout that ONNX Runtime hides",
        "the file of the row above: ONNX Runtime's default optimizer removes the node, other runtimes drop at random",
        dropout_in_train_mode,
        "verify",
        "file/training dropout",
        "(Dropout)",
    ),
    "mask": Case(
        "a random mask",
        "`x * (torch.rand_like(x) > 0.02) / 0.98`, in eval mode too",
        lambda: Classifier(Mask()).eval(),
        "export",
        "randomness",
        "draws random numbers in eval mode",
    ),
    "mask file": Case(
        "RandomUniformLike in the file",
        "the file of the row above",
        lambda: Classifier(Mask()).eval(),
        "verify",
        "file/random nodes",
        "(RandomUniformLike)",
    ),
    "batchnorm": Case(
        "a BatchNorm in train mode below `model.eval()`",
        "its running statistics are those of the example; the file normalizes by them, the traced program by the batch",
        batchnorm_in_train_mode,
        "export",
        "",
        "in train mode: `1`; the eval network was taken",
        example=images,
    ),
    "row": Case(
        "a wrong weight that the example does not read",
        "the converter's graph with a row of an embedding changed; the example holds other words",
        lambda: nn.Sequential(nn.Embedding(50, 4), nn.Linear(4, 2)).eval(),
        "verify",
        "weights",
        "has 4 of 200 values wrong in the file, the first at [41, 0]",
        example=lambda: torch.arange(4).reshape(2, 2),
        edit=changed_row,
    ),
    "opset": Case(
        "opset 13 asked for, 18 written",
        "`opset_version=13`",
        lambda: nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)).eval(),
        "export",
        "ValueError",
        "opset must be in [18, ",
        options=lambda: {"opset_version": 13},
        ours_options={"opset": 13},
    ),
    "paths": Case(
        "absolute paths of the machine in the file",
        "any model: the nodes' metadata holds the source lines of the user's code",
        lambda: Erf().eval(),
        "verify",
        "file/local paths",
        "/",
        verdict="warning",
    ),
    "large dropout": Case(
        "a Dropout in train mode, with a larger effect",
        "as above, before a last layer without softmax",
        lambda: nn.Sequential(nn.Linear(16, 8), nn.Dropout(0.5), nn.Linear(8, 4)).train(),
        "verify",
        "file/training dropout",
        "(Dropout)",
        green=False,
    ),
}
