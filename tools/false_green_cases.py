"""The defects of docs/false-greens.md, each as a model; some need a converter led astray."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from false_green_edits import (
    another_relu,
    changed_entry,
    changed_row,
    cut_and_padded,
    doubled_from_64,
    exchanged_layers,
    last_node_first,
    narrow_words,
    open_batch,
    translated,
    without_layer,
)
from false_green_models import (
    Baked,
    Branch,
    Classifier,
    DropPath,
    Erf,
    Gated,
    Logarithm,
    LogSigmoid,
    Mask,
    Place,
    Table,
    batchnorm_in_train_mode,
    dead,
    dropout_in_train_mode,
    nan_weight,
    rows,
    samples,
    words,
)
from torch import Tensor, nn


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
        "`Dim.AUTO`, and the model takes another path from 4 samples on; the example has 2",
        lambda: Branch().eval(),
        "verify",
        "cpu/all/batch=17/worst error",
        "output `output`",
        example=lambda: torch.randn(2, 16),
        options=open_batch("auto"),
    ),
    "64 samples": Case(
        "a file that is right for fewer than 64 samples only",
        "the converter's graph with its output doubled where the batch has 64 samples or more; the example has 2",
        lambda: nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)).eval(),
        "verify",
        "cpu/off/batch=64/worst error",
        "output `",
        example=lambda: torch.randn(2, 16),
        options=lambda: {"dynamic_shapes": {"input": {0: "batch"}}},
        edit=doubled_from_64,
    ),
    "place": Case(
        "one sample of a batch treated unlike the others",
        "the model doubles its fifth sample; the example has 2",
        lambda: Place().eval(),
        "export",
        "batch independence",
        "of sample 4",
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
        example=samples,
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
    "left out": Case(
        "a layer called DropPath that does something in eval mode, left out",
        "the layer multiplies by 1.005; the converter's graph without that, as tools leave layers out by their names",
        lambda: nn.Sequential(nn.Linear(16, 8), DropPath(), nn.Linear(8, 4)).eval(),
        "verify",
        "cpu/off/data/worst error",
        "output `",
        edit=without_layer,
    ),
    "narrow words": Case(
        "words that wrap around at 256",
        "the converter's graph with the words cast to integers of eight bits and back; the example has none beyond 3",
        words,
        "verify",
        "cpu/off/input=255..257/worst error",
        "output `",
        example=lambda: torch.arange(4).reshape(2, 2),
        edit=narrow_words,
    ),
    "padded table": Case(
        "an embedding that is cut before it is read",
        "the converter's graph with a Slice of 256 of 300 rows and a Pad with zeros; all rows are in the file",
        words,
        "verify",
        "weights",
        "values wrong in the file",
        example=lambda: torch.arange(4).reshape(2, 2),
        edit=cut_and_padded,
    ),
    "exchanged": Case(
        "two layers with each other's weights",
        "the converter's graph with the inputs of two Gemm exchanged, behind a gain of zero",
        lambda: Gated().eval(),
        "verify",
        "weights",
        "where the model reads `second.weight`, the file has `first.weight`",
        edit=exchanged_layers,
    ),
    "small table": Case(
        "a wrong entry of a small table of integers",
        "the converter's graph with one of eight entries changed; the example reads the others",
        lambda: Table().eval(),
        "verify",
        "weights",
        "has 1 of 8 values wrong in the file",
        example=lambda: torch.arange(4),
        edit=changed_entry,
    ),
    "function": Case(
        "a function that bears the name of ONNX's own Relu",
        "added to the converter's graph: ONNX Runtime takes its own, ONNX's reference implementation the function",
        lambda: nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)).eval(),
        "verify",
        "file/functions",
        "may be an operator of a runtime's own",
        edit=another_relu,
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
