"""The command line's arguments and options, each described once."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from jumpout_export.runtime.providers import provider_choices


class Dtype(StrEnum):
    """The floating-point type of an exported network, as each precision is asked for; `dtypes()` says what it is."""

    fp16 = "fp16"
    bf16 = "bf16"


class Quantize(StrEnum):
    """How an exported file is quantized."""

    int8 = "int8"


class Weight(StrEnum):
    """What a sample weighs."""

    samples = "samples"
    pixels = "pixels"


class Method(StrEnum):
    """How running statistics are recalibrated."""

    exact = "exact"
    batch = "batch"
    variance = "variance"


def choices(kind: type[StrEnum]) -> str:
    """Returns the values of an option, as its help shows them."""
    return "|".join(kind)


_MODEL_HELP = "package.module:factory, a callable that returns the nn.Module"
Model = Annotated[str, typer.Argument(metavar="MODEL", help=_MODEL_HELP)]
ModelOrProgram = Annotated[str, typer.Argument(metavar="MODEL", help=f"{_MODEL_HELP}; or file.pt2")]
Weights = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help=".safetensors, or .pt/.pth with tensors only; without it the factory's own weights"
    ),
]
_DATA_HELP = "folder of class sub-folders with images, .npz with inputs (and labels), or package.module:callable"
Data = Annotated[str | None, typer.Option(metavar="DATA", help=_DATA_HELP)]
ManyData = Annotated[
    list[str], typer.Option("--data", metavar="DATA", help=f"{_DATA_HELP}; repeatable: a verdict for each")
]
ReferenceData = Annotated[
    str | None,
    typer.Option(
        "--reference",
        metavar="DATA",
        help="samples as in training: tells other samples from a stale average; as --data",
    ),
]
GroupsOption = Annotated[
    str | None,
    typer.Option(
        "--groups",
        metavar="NAME",
        help="which samples belong together: an entry of the batches, an array of the .npz, or a regular expression "
        "for the paths in a folder",
    ),
]
PerFolder = Annotated[bool, typer.Option("--per-folder", help="every folder in --data is a set with its own verdict")]
NeededData = Annotated[str, typer.Option("--data", metavar="DATA", help=_DATA_HELP)]
InputShape = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SHAPE", help="without --data: shape of random inputs, 1,3,32,32 or name:1,3,32,32; repeatable"
    ),
]
Providers = Annotated[
    str, typer.Option(metavar="NAMES", help=f"ONNX Runtime providers to verify on, {provider_choices()}")
]
ProviderPython = Annotated[
    str | None,
    typer.Option(
        "--provider-python",
        metavar="PYTHON",
        help="Python of another environment, whose onnxruntime has the providers; all but cpu run there",
    ),
]
Dynamic = Annotated[
    list[str] | None,
    typer.Option(
        metavar="INPUT:AXIS=NAME",
        help="further axis to leave open, for example image:2=height; verified at other sizes; repeatable",
    ),
]
DtypeOption = Annotated[
    Dtype | None,
    typer.Option(
        "--dtype",
        metavar=choices(Dtype),
        help="fp16 or bf16 exports a copy in half precision; the model's own type by default",
    ),
]
ExternalData = Annotated[
    bool,
    typer.Option("--external-data", help="write the weights to a file beside it, as is always done beyond 2 GiB"),
]
TritonRepository = Annotated[
    Path | None,
    typer.Option(
        "--triton",
        metavar="DIR",
        help="Triton model repository to write it to, too: DIR/NAME/config.pbtxt and DIR/NAME/1/model.onnx, NAME from "
        "OUT.onnx",
    ),
]
Device = Annotated[str, typer.Option(metavar="DEVICE", help="where torch runs: cpu or cuda[:N]")]
Seed = Annotated[
    int, typer.Option(metavar="N", help="seeds whatever is random; the same command gives the same JSON, bit for bit")
]
BatchSize = Annotated[int, typer.Option(min=1, metavar="N", help="samples per batch")]
NumSamples = Annotated[int, typer.Option("--samples", min=1, metavar="N", help="how many samples to look at")]
Warn = Annotated[float, typer.Option(min=0.0, metavar="X", help="margin that decides the verdict, in units of W")]
Fail = Annotated[float, typer.Option(min=0.0, metavar="X", help="margin from which drift is called severe")]
TrainingBatchSize = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="samples in a BatchNorm batch of training (a micro-batch, or one process's); says how noisy averages are",
    ),
]
WeighBy = Annotated[
    Weight,
    typer.Option(
        metavar=choices(Weight),
        help="what samples of different sizes weigh: the same (samples), or by their pixels (pixels)",
    ),
]
Layers = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="BatchNorm layer to recalibrate; repeatable; all that are not frozen by default"),
]
RefuseIfWorse = Annotated[
    bool,
    typer.Option(
        "--refuse-if-worse", help="write nothing if likelihood or accuracy on the data get significantly worse"
    ),
]
AllowConstant = Annotated[
    list[str] | None,
    typer.Option(metavar="OUTPUT", help="output that may be the same for every input; repeatable"),
]
NoMadeUpInputs = Annotated[
    bool, typer.Option("--no-made-up-inputs", help="compare on the given data alone, and on no inputs made of it")
]
Thorough = Annotated[bool, typer.Option("--thorough", help="compare at more sizes of the open axes; takes longer")]
Json = Annotated[bool, typer.Option("--json", help="print the report as JSON")]
ReportDir = Annotated[
    Path | None, typer.Option("--report", metavar="DIR", help="write report.json, .md, .html and the plots here")
]
Junit = Annotated[
    Path | None,
    typer.Option(
        "--junit", metavar="FILE.xml", help="write JUnit XML here: a test case for each check, and one for the verdict"
    ),
]
Summary = Annotated[
    Path | None,
    typer.Option(
        "--summary", metavar="FILE", help="append a few lines of Markdown, for example to $GITHUB_STEP_SUMMARY"
    ),
]
OnnxFile = Annotated[Path, typer.Argument(metavar="FILE.onnx", help="the ONNX file")]
QuantizedSwitch = Annotated[
    bool,
    typer.Option(
        "--quantized", help="judge a quantized file by what its rounding costs; never done without this switch"
    ),
]
MinSqnr = Annotated[
    float | None,
    typer.Option(metavar="DB", help="smallest signal to quantization noise of a tensor or output, 10 dB by default"),
]
MaxClipped = Annotated[
    float | None,
    typer.Option(metavar="SHARE", help="largest share of a tensor's values beyond its range, 0.01 by default"),
]
Top1Margin = Annotated[
    float | None,
    typer.Option("--top1-margin", metavar="SHARE", help="largest fall of top-1 accuracy, 0.01 (one point) by default"),
]
NllMargin = Annotated[
    float | None,
    typer.Option(metavar="NATS", help="largest rise of the negative log likelihood, 0.05 nats by default"),
]
NoAccuracy = Annotated[
    bool, typer.Option("--no-accuracy", help="judge no accuracy and likelihood, which need labels, but noise alone")
]
QuantizeOption = Annotated[
    Quantize | None,
    typer.Option(
        "--quantize",
        metavar=choices(Quantize),
        help="publish a quantized file, made of the proven float one, if it passes the verdict on quantized files",
    ),
]
Calibration = Annotated[
    str | None,
    typer.Option(
        metavar="DATA", help="with --quantize: samples that the ranges of activations are taken from; as --data"
    ),
]
