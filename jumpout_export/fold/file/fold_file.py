"""Folds an existing ONNX file that carries training-time noise into a deterministic one, with proof, or refuses."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from jumpout_export.disk import check_target, locked, private_folder, replace_file, writing
from jumpout_export.errors import LoadError, NotVerifiableError
from jumpout_export.extras import require_onnx
from jumpout_export.fold.file.copies import neutral_copy, observed_copy
from jumpout_export.fold.file.edit import correct_metadata, count_nodes, cut_paths, take_out
from jumpout_export.fold.file.factors import describe
from jumpout_export.fold.file.noise import NoiseSite
from jumpout_export.fold.file.observe import observe
from jumpout_export.fold.file.proof import prove
from jumpout_export.fold.file.read import Reading, read_noise
from jumpout_export.log import log_step
from jumpout_export.onnxfile.data import external_files, sha256_of
from jumpout_export.onnxfile.load import MAX_BYTES, load_onnx
from jumpout_export.onnxfile.manifest import digests_of, publish, withdrawn
from jumpout_export.onnxfile.metadata import entries
from jumpout_export.onnxfile.sizes import MOST_ELEMENTS, impossible
from jumpout_export.onnxfile.walk import default_opset, tensors
from jumpout_export.report import Check, ExportReport, FoldedLayer, counted, limited, passes
from jumpout_export.runtime.loads import inspect_file
from jumpout_export.runtime.providers import fallback
from jumpout_export.runtime.session import open_session
from jumpout_export.text import first_line

if TYPE_CHECKING:
    from onnx import ModelProto

# What messages call the file that `fold_onnx` writes.
TARGET = "the file to write"
_WATCHED_RUNS = 8
# What a file must be before anything is read from it; what a fold may change is not among it.
_NEEDED = (
    *("training graphs", "custom operators", "functions"),
    *("external data", "input sizes", "tensors", "onnx checker"),
)


def fold_onnx(path: str | os.PathLike[str], out: str | os.PathLike[str], *, seed: int = 0) -> ExportReport:
    """Writes a copy of an ONNX file without its training-time noise, if that is proven to be the same network.

    Folded are Dropout nodes in training mode and masks as exporters write them: x times a random {0, 1} mask, times
    a scale (1 / keep)^alpha, in the main graph, in subgraphs and in functions. At rate 0 such a product is x, and x
    takes its place. Whatever else is random, and BatchNormalization in training mode, is refused with the node named.

    The proof, on random inputs in ONNX Runtime: the written file passes `inspect_onnx`; it is bitwise equal to the
    noisy file with its rates set to zero; two runs agree bitwise; and the noisy file does at each place in its main
    graph what was read from the graph (0, or x times the scale, as often as the mask says).

    Args:
        path: the file.
        out: the file to write; appears only if everything passed, and may be `path` itself. External data is taken
            into it; absolute paths in metadata are cut to file names. A function with noise in it is written out
            where it is called.
        seed: of the random inputs.

    Returns:
        A report, truthy exactly when the file was written. A refusal does not raise.

    Raises:
        LoadError: if there is no such file or it is not a readable ONNX model.
        NotVerifiableError: if no random inputs can be made that the file runs.
        ValueError: if `out` cannot be written.
        ImportError: if onnx, onnx_ir or onnxruntime is missing.
    """
    require_onnx("onnx", "onnxruntime", "onnx_ir")
    path, target = Path(path), check_target(out, TARGET)
    log_step(f"fold: {path.name}")
    model = load_onnx(path)
    report = ExportReport(kind="fold", passed=False, path=str(target), opset=default_opset(model))
    report.checks = _unusable(path, model)
    if report.checks:
        return report
    notes = _take_in(model, path)
    reading = read_noise(model)
    noise = reading.noise
    if large := impossible(reading.typed.graph.value_info, 0, MOST_ELEMENTS):
        report.checks.append(counted("file/value sizes", large))
        return report
    report.checks.append(counted("fold/noise", noise.refused, _found(reading)))
    if noise.refused:
        return report
    report.folded = [_layer(site) for site in noise.sites]
    notes += _rewrite(reading, report.folded)
    if not reading.changes:
        report.notes.append("there is nothing to fold")
    report.notes += [*notes, *(f"{where} is off and stays" for where in noise.kept)]
    # In the target's own folder, so that the last step is a rename.
    with writing(target), private_folder(target) as folder:
        file = folder / target.name
        file.write_bytes(reading.model.SerializeToString(deterministic=True) if notes else path.read_bytes())
        report.checks += inspect_file(file, load_onnx(file))
        if passes(report.checks):
            report.checks += _proof(file, reading, report.notes, seed)
        report.passed = passes(report.checks)
        if report.passed:
            report.sha256 = sha256_of(file)
            report.provenance = entries(reading.model)
            manifest = digests_of(file, None, None).write(folder / "manifest")
            with locked(target.parent):
                with withdrawn(target, file):
                    replace_file(file, target)
                publish(manifest, target)
    return report


def _unusable(path: Path, model: ModelProto) -> list[Check]:
    """The checks without which nothing can be read from the file, as far as it fails them."""
    checks = [check for check in inspect_file(path, model) if check.name.removeprefix("file/") in _NEEDED]
    if passes(checks):
        files = {path, *(path.parent / name for name in external_files(model))}
        size = sum(file.stat().st_size for file in files)
        note = f"the file and its external data take {size / 2**30:.1f} GiB; one file holds 2 GiB"
        checks.append(limited("file/size", size, MAX_BYTES, note))
    return [check for check in checks if check.blocks]


def _take_in(model: ModelProto, path: Path) -> list[str]:
    """Loads the external data into the model; returns a note if there is any."""
    import onnx

    if not external_files(model):
        return []
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
        for tensor in tensors(model):
            onnx.numpy_helper.to_array(tensor)  # raises where the data end before the tensor does
    except Exception as error:  # a file cut off, or one that onnx does not want to open
        raise LoadError(f"{path}: its external data cannot be read ({first_line(error)})") from error
    return ["external data is taken into the file"]


def _rewrite(reading: Reading, layers: list[FoldedLayer]) -> list[str]:
    """Changes `reading.model`; returns a note for each kind of change."""
    noise, written = reading.noise, reading.model
    notes = [f"function `{name}` is written out where it is called" for name in reading.inlined]
    if noise.found:
        before = count_nodes(written)
        take_out(written, reading.graph.graph, noise)
        gone = before - count_nodes(written)
        notes.append(f"nodes removed: {gone}, of them random or in training mode: {len(noise.removed) - noise.off}")
    notes += correct_metadata(written, layers)
    if paths := cut_paths(written):
        notes.append(f"texts whose absolute paths are cut to file names: {paths}")
    return notes


def _proof(file: Path, reading: Reading, notes: list[str], seed: int) -> list[Check]:
    sites, main = reading.noise.sites, reading.graph.graph
    watched = [site for site in sites if site.y.graph is main]
    noisy = observed_copy(reading.typed, watched)
    try:
        checks, draws = prove(file, neutral_copy(reading.graph, reading.noise), seed)
    except NotVerifiableError:
        raise
    except Exception as error:  # ONNX Runtime raises a dozen types without a common base
        return [Check(name="proof/run", verdict="fail", note=f"the proof could not be run: {first_line(error)}")]
    if len(watched) < len(sites):
        notes.append(f"noise in subgraphs was not watched: {len(sites) - len(watched)} places")
    if not watched:
        return checks
    try:
        session = open_session(noisy, fallback().name, "off")
        runs = [session(draws[-1].feeds) for _ in range(_WATCHED_RUNS)]
    except Exception as error:  # for example, ONNX Runtime 1.31 has no RandomUniformLike of opset 22
        notes.append(f"the noise was not watched: ONNX Runtime cannot run the noisy file ({first_line(error)})")
        return checks
    return [*checks, observe(runs, watched)]


def _layer(site: NoiseSite) -> FoldedLayer:
    kind = "Dropout" if site.factor is None else "mask"
    settings = describe(site.factor) if site.factor else ""
    return FoldedLayer(path=site.where, kind=kind, action="identity", settings=settings)


def _found(reading: Reading) -> str:
    noise = reading.noise
    if noisy := len(noise.sites) - noise.off:
        return f"places where noise is multiplied in, each the identity at rate 0: {noisy}"
    if noise.off:
        return (
            f"Dropout nodes that are off, and that a runtime may not have or has to compute that they are: {noise.off}"
        )
    return (
        "functions train only if they are told to, and nobody does" if reading.changes else "there is nothing to fold"
    )
