"""What was found of every rounded tensor, as rows of the report, and the verdicts on the worst of them."""

from __future__ import annotations

import math

import numpy as np

from jumpout_export.quantized.noise import Noise, Region, fall, regions_of
from jumpout_export.quantized.power import decibels
from jumpout_export.quantized.read import QuantizedFile
from jumpout_export.quantized.settings import Quantized
from jumpout_export.quantized.weights import RoundedFrom
from jumpout_export.report import Check, QuantizedTensor, limited
from jumpout_export.text import joined
from jumpout_export.verify.constants.batchnorms import ROOT


def tensors_of(file: QuantizedFile, found: list[RoundedFrom], noise: Noise) -> tuple[list[QuantizedTensor], str | None]:
    """Returns a row for every rounded constant and activation and every output, and the layer that costs most.

    That is where signal to noise falls most below the worst tensor that is read; None where it falls nowhere.
    """
    layers = {one.weight.result: one.layer for one in found if one.layer}
    regions = {one.made: one for one in regions_of(file)}
    rows = [_weight(one) for one in found]
    for one in file.activations:
        power, region = noise.activations[one.name], regions.get(one.name)
        rows.append(
            QuantizedTensor(
                name=one.name,
                kind="activation",
                layer=_layer(region, layers),
                integers=one.grid.kind.lower(),
                scale=float(one.grid.scale.max()),
                scales=one.grid.scale.size,
                clipped=power.clipped_share,
                sqnr=power.sqnr if one.result else None,
                fall=fall(region, noise) if region is not None and one.result else None,
            )
        )
    rounded = {one.result: one.name for one in file.activations if one.result}
    for name, power in noise.outputs.items():
        region = regions.get(rounded.get(name, name))
        rows.append(
            QuantizedTensor(
                name=name,
                kind="output",
                layer=_layer(region, layers),
                sqnr=power.sqnr,
                fall=fall(region, noise) if region is not None and name not in rounded else None,
            )
        )
    falls = [row for row in rows if row.fall is not None and row.layer]
    worst = max(falls, key=lambda row: row.fall or 0.0, default=None)
    return rows, worst.layer if worst is not None and (worst.fall or 0.0) > 0 else None


def clipped_check(rows: list[QuantizedTensor], noise: Noise, limits: Quantized) -> Check:
    """Returns whether no tensor has more of its values beyond its range than is allowed.

    One that has on the samples that were seen, and may have less on others (its 95% interval, samples as the unit,
    holds the limit), is inconclusive.
    """
    shares = [row for row in rows if row.clipped is not None]
    worst = max(shares, key=lambda row: row.clipped or 0.0, default=None)
    if worst is None:
        return limited("clipped", 0.0, limits.max_clipped, "nothing has a range")
    beyond = [row for row in shares if (row.clipped or 0.0) > limits.max_clipped]
    shown = [row for row in beyond if _least(row, noise) > limits.max_clipped]
    texts = [
        f"`{row.name}` ({row.clipped or 0.0:.2%}, scale {row.scale:.3g}, {row.layer or ROOT})"
        for row in shown or beyond
    ]
    good = f"most at `{worst.name}`, {worst.clipped or 0.0:.2%} of its values"
    note = f"{f'beyond the range: {joined(texts)}' if beyond else good}; limit {limits.max_clipped:.2%}"
    if beyond and not shown:
        note = f"inconclusive: {note}, and {noise.samples} samples are too few to tell"
        measured = worst.clipped or 0.0
        return Check(name="clipped", measured=measured, limit=limits.max_clipped, verdict="not_run", note=note)
    return limited("clipped", worst.clipped or 0.0, limits.max_clipped, note)


def _least(row: QuantizedTensor, noise: Noise) -> float:
    return noise.activations[row.name].clipped_least if row.kind == "activation" else row.clipped or 0.0


def noise_check(rows: list[QuantizedTensor], worst_layer: str | None, limits: Quantized) -> Check:
    """Returns whether signal to noise of every activation and output is above the limit; measured is noise to signal.

    A constant is judged by the steps of its own scale.
    """
    heard = [row for row in rows if row.sqnr is not None and row.kind != "weight"]
    worst = min(
        heard, key=lambda row: row.sqnr if row.sqnr == row.sqnr and row.sqnr is not None else -math.inf, default=None
    )
    falls = [row for row in rows if row.fall is not None and row.layer == worst_layer]
    most = max((row.fall or 0.0 for row in falls), default=0.0)
    where = f"; it falls most at `{worst_layer}`, by {most:.1f} dB" if worst_layer else ""
    if worst is None:
        return Check(name="quantization noise", verdict="not_run", note="no tensor was looked at")
    sqnr = worst.sqnr if worst.sqnr is not None else math.nan
    measured = math.nan if math.isnan(sqnr) else float(10 ** (-sqnr / 20))
    note = (
        f"signal to noise {sqnr:.1f} dB at `{worst.name}` ({worst.layer or ROOT}), limit {limits.min_sqnr:g} dB{where}"
    )
    return limited("quantization noise", measured, limits.most_noise, note)


def _weight(one: RoundedFrom) -> QuantizedTensor:
    sqnr = None
    if one.wanted is not None:
        signal = float(np.linalg.norm(one.wanted))
        noise = float(np.linalg.norm(one.wanted - one.weight.value()))
        sqnr = decibels(noise / signal if signal else (0.0 if noise == 0 else math.inf))
    return QuantizedTensor(
        name=one.weight.name,
        kind="weight",
        layer=one.layer or one.weight.reader,
        integers=one.weight.grid.kind.lower(),
        scale=float(one.weight.grid.scale.max()),
        scales=one.weight.grid.scale.size,
        clipped=one.clipped if one.wanted is not None else None,
        sqnr=sqnr,
    )


def _layer(region: Region | None, layers: dict[str, str]) -> str:
    """The layer whose weights are read on the way to a tensor, or its last node."""
    if region is None:
        return ""
    named = list(dict.fromkeys(layers[name] for name in region.weights if name in layers))
    return joined(named, 3) if named else region.node
