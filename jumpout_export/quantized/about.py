"""What a strict verdict says of a quantized file: that it is one, and how such a file is judged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jumpout_export.quantized.read import quantized_operators
from jumpout_export.report import Check

if TYPE_CHECKING:
    from onnx import ModelProto


def about_quantized(model: ModelProto) -> list[Check]:
    """Returns, for a file that is not the model and is quantized, a failed check that says how such a file is judged.

    Nothing is judged so unless it is asked for: a float file that rounds by mistake is a wrong file.
    """
    found = quantized_operators(model)
    if not found:
        return []
    named = ", ".join(f"{number} {name}" for name, number in found.items())
    note = (
        f"the file rounds values to integers ({named}), so it cannot equal the model to the last digits as was asked "
        "here; what its rounding costs is judged with quantized=True (--quantized)"
    )
    return [Check(name="quantized", measured=sum(found.values()), limit=0, verdict="fail", note=note)]
