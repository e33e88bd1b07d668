"""Noise is found, sorted into what can go and what cannot, and named where it stands."""

import pytest
from support.onnx_files import parsed

from jumpout_export.fold.file.masks import Forms
from jumpout_export.fold.file.read import read_noise

HEAD = """g (float[n,4] x, bool flag) => (float[n,4] y)
    <float r = {0.3}, float k = {0.7}, float one = {1}, bool on = {1}, bool off = {0}>"""


def noise(body, head=HEAD):
    return read_noise(parsed(f"{head} {{ {body} }}", check=False)).noise


MASKED = "u = RandomUniformLike(x) b = Less(u, k) m = Cast<to = 1>(b)"
FOLDABLE = {
    "a Dropout": ("[d] y = Dropout(x, r, on)", "d (Dropout)", ""),
    "a mask and its scale": (f"{MASKED} p = Mul(x, m) [z] y = Div(p, k)", "z (Div)", "keep 0.7, scale 1.42857"),
    "the scale first": (f"{MASKED} s = Div(x, k) [z] y = Mul(s, m)", "z (Mul)", "keep 0.7, scale 1.42857"),
    "Where": (
        "u = RandomUniformLike(x) b = Less(u, k) q = Div(x, k) zero = Sub(one, one) [z] y = Where(b, q, zero)",
        "z (Where)",
        "keep 0.7, scale 1.42857",
    ),
    "Floor": (
        "u = RandomUniformLike(x) p = Add(u, k) m = Floor(p) q = Div(x, k) [z] y = Mul(q, m)",
        "z (Mul)",
        "keep 0.7, scale 1.42857",
    ),
}


@pytest.mark.parametrize(("body", "where", "settings"), FOLDABLE.values(), ids=FOLDABLE.keys())
def test_what_can_be_taken_out(body, where, settings):
    found = noise(body)
    assert found.refused == []
    (site,) = found.sites
    assert (site.where, site.x.name, site.y.name) == (where, "x", "y")
    assert (site.factor is None) == (settings == "")
    assert found.found
    assert found.becomes(site.y) is site.x
    assert len(found.removed) == 1


REFUSED = {
    "noise that is added": ("[u] u = RandomNormalLike(x) y = Add(x, u)", "u (RandomNormalLike) draws normal numbers"),
    "a mask without its scale": (
        f"[u] {MASKED} y = Mul(x, m)",
        "without a scale, what it is at rate 0 is not in the file",
    ),
    "another scale": (f"{MASKED} p = Mul(x, m) y = Div(p, r)", "only (1 / keep)^alpha would be the identity at rate 0"),
    "a flag of the caller": ("[d] y = Dropout(x, r, flag)", "`flag` says, which is an input of the graph"),
    "a flag computed of it": ("n = Not(flag) [d] y = Dropout(x, r, n)", "`n` says, which is computed in the graph"),
    "a mask that is used": (
        "[d] z, m = Dropout(x, r, on) c = Cast<to = 1>(m) [use] y = Mul(z, c)",
        "d (Dropout) is in training mode, and its mask is used by #1 (Cast)",
    ),
    "the statistics of the batch": (
        "[b] y, mean, var = BatchNormalization <training_mode = 1> (x, w, w, w, w)",
        "b (BatchNormalization) is in training mode: it normalizes with the statistics of the batch",
    ),
}


@pytest.mark.parametrize(("body", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_taken_out_is_named_with_the_reason(body, says):
    (text,) = noise(body, HEAD.replace("bool off", "float[4] w = {1, 1, 1, 1}, bool off")).refused
    assert says in text


def test_what_is_off_stays_and_what_nobody_needs_is_no_noise():
    found = noise("[d] z = Dropout(x, r, off) u = RandomUniformLike(x) unused = Mul(u, x) y = Neg(z)")
    assert (found.sites, found.refused, found.kept) == ([], [], ["d (Dropout)"])
    assert [node.op_type for node in found.removed] == ["RandomUniformLike"]


def test_noise_in_a_branch_is_found_there():
    body = """z = If(flag) <then_branch = t () => (float[n,4] ty) { [d] p = Dropout(x, r, on) ty = Neg(p) },
        else_branch = e () => (float[n,4] ey) { ey = Neg(x) }> y = Identity(z)"""
    (site,) = noise(body).sites
    assert site.where == "d (Dropout) in then_branch of #0 (If)"


def test_random_numbers_that_decide_two_masks_are_no_dropout():
    body = f"{MASKED} p = Mul(x, m) z = Div(p, k) c = Less(u, r) d = Cast<to = 1>(c) q = Mul(z, d) y = Div(q, r)"
    found = noise(body)
    assert found.sites == []
    assert found.refused


def test_a_form_is_kept_for_every_value():
    assert Forms(noise("y = Neg(x)").values).of == {}
