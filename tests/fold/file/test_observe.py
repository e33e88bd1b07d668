"""Watching noise: a dropout passes, anything else that shows in values is named."""

import numpy as np
import pytest
from support.onnx_files import parsed

from jumpout_export.fold.file.observe import observe
from jumpout_export.fold.file.read import read_noise

HEAD = "g (float[n,4] x) => (float[n,4] y) <float r = {0.3}, float k = {0.7}, bool on = {1}>"
MASK = "u = RandomUniformLike(x) b = Less(u, k) m = Cast<to = 1>(b) p = Mul(x, m) d = Div(p, k) y = Neg(d)"
DROPOUT = "d = Dropout(x, r, on) y = Neg(d)"
RNG = np.random.default_rng(1)


def runs(make, count=8, size=(64, 4)):
    """What the copies would have shown: x, the uniform numbers and the y that `make` gives of them."""
    shown = []
    for _ in range(count):
        x = RNG.standard_normal(size).astype(np.float32)
        u = RNG.random(size).astype(np.float32)
        shown.append({"observed: x": x, "observed: u": u, "observed: d": make(x, u).astype(np.float32)})
    return shown


def dropped(x, u, keep=0.7, scale=1 / 0.7):
    return np.where(u < keep, x * np.float32(scale), 0)


CASES = {
    "dropout": (dropped, ""),
    "another rate": (lambda x, u: dropped(x, u, keep=0.5), "drops 0."),
    "another scale": (lambda x, u: dropped(x, u, scale=1.3), "makes something else of x than 0 or x times the scale"),
    "nothing dropped": (lambda x, u: x * np.float32(1 / 0.7), "drops 0 of the values, where its mask says 0.3"),
    "noise added": (lambda x, u: dropped(x, u) + 0.1, "makes something else of x"),
    "another shape": (lambda x, u: dropped(x, u)[:, :2], "makes [64, 2] of [64, 4]"),
}


@pytest.mark.parametrize(("make", "says"), CASES.values(), ids=CASES.keys())
def test_what_a_mask_does_is_held_against_what_it_was_read_as(make, says):
    sites = read_noise(parsed(f"{HEAD} {{ {MASK} }}")).noise.sites
    check = observe(runs(make), sites)
    assert check.verdict == ("fail" if says else "pass")
    assert says in check.note
    assert says or check.note.startswith("2048 values, each 0 or x times the scale")


def test_a_dropout_nodes_rate_is_read_off_its_scale():
    sites = read_noise(parsed(f"{HEAD} {{ {DROPOUT} }}")).noise.sites
    for scale, verdict in ((1 / 0.7, "pass"), (1 / 0.5, "fail")):
        assert observe(runs(lambda x, u, scale=scale: dropped(x, u, scale=scale)), sites).verdict == verdict


def test_few_values_prove_nothing_wrong():
    sites = read_noise(parsed(f"{HEAD} {{ {MASK} }}")).noise.sites
    assert observe(runs(lambda x, u: x * np.float32(1 / 0.7), count=1, size=(1, 4)), sites).verdict == "pass"
