"""The algebra of masks and scales: only those of dropout and jumpout are taken."""

import numpy as np
import onnx_ir as ir
import pytest

from jumpout_export.fold.file.factors import EXPONENTS, Factor, Keep, Mask, is_dropout


def factor(keep, scale):
    return Factor(frozenset({Mask(ir.node("RandomUniformLike", []), Keep(keep), True)}), scale)


@pytest.mark.parametrize("eps", [2.0**-23, 2.0**-10], ids=["float32", "float16"])
@pytest.mark.parametrize("keep", [0.05, 0.3, 0.5, 0.7, 0.99])
def test_only_the_scales_of_dropout_and_jumpout_are_taken(keep, eps):
    kind = np.float32 if eps < 1e-4 else np.float16
    for alpha in EXPONENTS:
        rounded = float(kind(1 - float(kind(1 - keep))))
        assert is_dropout(factor(rounded, float(kind(keep**-alpha))), eps)
    others = [1.0, keep, keep**-0.5, keep**-2, -1 / keep, 1.1 / keep, 0.95 / keep]
    taken = [scale for scale in others if is_dropout(factor(keep, scale), eps)]
    # Almost nothing is dropped at 0.99: the scales are all near 1.
    assert not taken or keep == 0.99 or (kind is np.float16 and keep == 0.05)
