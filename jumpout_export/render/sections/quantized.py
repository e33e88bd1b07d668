"""The section about a quantized file: what rounding does to its tensors, and to accuracy and likelihood."""

from __future__ import annotations

import math

from jumpout_export.render.blocks import Block, Cell, Column, Section, Table, state
from jumpout_export.render.numbers import number, p_value, percent, points, signed
from jumpout_export.report import Quantization, QuantizedOutputs, QuantizedTensor, VerifyReport
from jumpout_export.text import count

_WORDS = {"ok": "ok", "fails": "fail", "inconclusive": "inconclusive"}
_NOTHING = "–"


def quantized_section(report: VerifyReport) -> list[Section]:
    """Returns a row for each rounded tensor and for each level's outputs; nothing for a file not judged so."""
    found = report.quantization
    if found is None:
        return []
    blocks: list[Block] = []
    if found.tensors:
        blocks.append(_tensors(found))
    rows = tuple(_outputs(label, one) for label, one in found.outputs.items() if one.effect is not None)
    if rows:
        columns = (
            Column("level"), Column("top-1"), Column("change in points, 95%", "note"), Column("McNemar p", "number"),
            Column("likelihood"), Column("change in nats, 95%", "note"), Column("dB", "number"),
            Column("labelled", "number"),
        )  # fmt: skip
        blocks.append(Table(columns, rows, "The outputs, the file against the model"))
    worst = f" It falls most at `{found.worst_layer}`." if found.worst_layer else ""
    margins = ""
    if found.top1_margin is not None and found.nll_margin is not None:
        margins = f" Margins: {found.top1_margin:g} of top-1 accuracy, {found.nll_margin:g} nats."
    return [
        Section(
            "quantized",
            "What rounding costs",
            f"Signal to noise is to be {found.min_sqnr:g} dB or more, and at most {percent(found.max_clipped)} of a "
            f"tensor clipped.{margins}{worst}",
            "dB is 20 log10 of the size of a tensor over that of what rounding changes in it, against the same graph "
            f"without rounding, on {count(found.samples, 'sample')}; fall is how far that is below the worst tensor "
            "that it is made of. Clipped is the share of its values beyond what its integers reach. An interval of "
            "accuracy or likelihood that holds the margin decides nothing: inconclusive.",
            tuple(blocks),
            settled=_settled(found) if report else "",
        )
    ]


def _settled(found: Quantization) -> str:
    heard = [row.sqnr for row in found.tensors if row.kind != "weight" and row.sqnr is not None]
    return f"at least {number(min(heard))} dB" if heard else ""


def _tensors(found: Quantization) -> Table:
    columns = (
        Column("tensor", "path"), Column("layer", "name"), Column("integers", rank=2), Column("scale", "number"),
        Column("clipped", "number"), Column("dB", "number"), Column("fall", "number", rank=1),
    )  # fmt: skip
    note = "Of several scales, one per channel, the largest is shown."
    return Table(columns, tuple(_tensor(row, found) for row in found.tensors), "Tensors", note)


def _tensor(row: QuantizedTensor, found: Quantization) -> tuple[Cell, ...]:
    clipped = row.clipped is not None and not row.clipped <= found.max_clipped
    noisy = row.kind != "weight" and row.sqnr is not None and not row.sqnr >= found.min_sqnr
    several = f" ({row.scales})" if row.scales > 1 else ""
    return (
        Cell(row.name),
        Cell(row.layer or _NOTHING),
        Cell(row.integers or _NOTHING),
        Cell(number(row.scale) + several),
        Cell(percent(row.clipped), "bad" if clipped else "plain"),
        Cell(_decibels(row.sqnr), "bad" if noisy else "plain"),
        Cell(_decibels(row.fall)),
    )


def _outputs(label: str, one: QuantizedOutputs) -> tuple[Cell, ...]:
    effect = one.effect
    assert effect is not None
    top1, nll = (effect.top1_change_low, effect.top1_change_high), (effect.nll_change_low, effect.nll_change_high)
    return (
        Cell(label),
        state(_WORDS[one.top1]) if one.top1 else Cell(_NOTHING),
        Cell(_NOTHING if top1[0] is None or top1[1] is None else f"{points(top1[0])} to {points(top1[1])}"),
        Cell(_NOTHING if effect.mcnemar_p is None else p_value(effect.mcnemar_p)),
        state(_WORDS[one.nll]) if one.nll else Cell(_NOTHING),
        Cell(_NOTHING if nll[0] is None or nll[1] is None else f"{signed(nll[0])} to {signed(nll[1])}"),
        Cell(_decibels(one.sqnr)),
        Cell(f"{effect.labelled:,}"),
    )


def _decibels(value: float | None) -> str:
    return number(value) if value is None or not math.isfinite(value) else f"{value:.1f}"
