"""Makes a quantized file of a float one, with ONNX Runtime's own static quantizer."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from jumpout_export.model.batches import Batch
from jumpout_export.model.signature import tensors
from jumpout_export.onnxfile.metadata import PREFIX, TOLERANCE
from jumpout_export.onnxfile.walk import DEFAULT_DOMAINS, sites

# How a float file is judged says nothing of a quantized one.
_OF_FLOAT = (TOLERANCE, TOLERANCE.removesuffix("."))
KINDS = ("int8",)


def quantize_file(file: Path, out: Path, calibration: Iterable[Batch]) -> int:
    """Writes an int8 file with QuantizeLinear and DequantizeLinear nodes, and returns the number of samples it saw.

    Activations are uint8 with one scale each, from the smallest to the largest value on the calibration data; weights
    int8 with one scale per output channel, biases int32. Weights take 7 of their 8 bits: integer kernels of processors
    without VNNI add two products in 16 bits, where those of 8 bits saturate. Before, BatchNorms are folded and
    constants are computed, as ONNX Runtime recommends (quant_pre_process). A ReLU whose result is rounded goes into the
    rounding; in a file with a Clip all of them stay, so that its bound can be told.

    Args:
        file: a float file whose weights lie in it.
        out: the file to write, in an existing folder.
        calibration: inputs on the CPU, in the order of the graph.

    Raises:
        Exception: of ONNX Runtime, if it cannot quantize the file.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = out.with_name(f"prepared-{out.name}")
    samples = 0
    with _quiet():
        quant_pre_process(str(file), str(prepared), skip_symbolic_shape=True)
        model = onnx.load(prepared)
        given = [value.name for value in model.graph.input]

        class Reader(CalibrationDataReader):
            """Hands the batches on."""

            def __init__(self) -> None:
                self._batches = iter(calibration)

            def get_next(self) -> dict[str, Any] | None:
                nonlocal samples
                batch = next(self._batches, None)
                if batch is None:
                    return None
                samples += batch.size
                return {name: value.numpy() for name, value in zip(given, tensors(batch), strict=True)}

        quantize_static(
            str(prepared),
            str(out),
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"QDQKeepRemovableActivations": any(node.op_type == "Clip" for node in model.graph.node)},
        )
    prepared.unlink()
    _tidy(out)
    return samples


def _tidy(path: Path) -> None:
    """Takes out what was said of the float file, and the domains that ONNX Runtime names and nothing uses."""
    import onnx

    model = onnx.load(path)
    used = {site.node.domain for site in sites(model)} | DEFAULT_DOMAINS
    kept = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    entries = [
        entry for entry in model.metadata_props if entry.key.startswith(PREFIX) and not entry.key.startswith(_OF_FLOAT)
    ]
    del model.metadata_props[:]
    model.metadata_props.extend(entries)
    path.write_bytes(model.SerializeToString(deterministic=True))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """ONNX Runtime's quantizer warns the root logger of what was just done; errors are raised all the same."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
