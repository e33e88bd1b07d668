"""How a quantized file was made and judged, as one line of its metadata."""

from __future__ import annotations

from jumpout_export.environment import version_of
from jumpout_export.report import Quantization
from jumpout_export.text import count


def told(kind: str, samples: int, found: Quantization) -> str:
    """Returns how a file of this kind was made, with ranges from so many samples, and what was found of it."""
    heard = [row.sqnr for row in found.tensors if row.sqnr is not None and row.kind != "weight"]
    least = min(heard, default=float("nan"))
    clipped = max((row.clipped or 0.0 for row in found.tensors), default=0.0)
    parts = [
        f"{kind}, QuantizeLinear and DequantizeLinear by onnxruntime {version_of('onnxruntime') or ''}".rstrip(),
        f"ranges from {count(samples, 'sample')}",
        f"signal to noise at least {least:.1f} dB (limit {found.min_sqnr:g})",
        f"at most {clipped:.2%} clipped (limit {found.max_clipped:.2%})",
    ]
    for label, outputs in found.outputs.items():
        effect = outputs.effect
        if outputs.top1 is None or effect is None or effect.top1_change_low is None or effect.top1_change_high is None:
            continue
        low, high = 100 * effect.top1_change_low, 100 * effect.top1_change_high
        parts.append(
            f"{label}: top-1 {low:+.2f} to {high:+.2f} points, NLL {effect.nll_change_low or 0.0:+.4f} to "
            f"{effect.nll_change_high or 0.0:+.4f} nats on {count(effect.labelled, 'labelled sample')}"
        )
    if found.top1_margin is not None and found.nll_margin is not None:
        parts.append(f"margins {found.top1_margin:g} of top-1 accuracy and {found.nll_margin:g} nats")
    else:
        parts.append("accuracy was not judged")
    return "; ".join(parts)
