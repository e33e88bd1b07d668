"""The one rule of what is in training mode, opset by opset, and what the reader of a file takes for its facts."""

import itertools

import pytest
from support.onnx_files import parsed

from jumpout_export.onnxfile.training import (
    batchnorm_may_train,
    batchnorm_trains,
    dropout_may_train,
    dropout_trains,
    may_be_noise,
    random_nodes,
)
from jumpout_export.onnxfile.walk import sites


@pytest.mark.parametrize(
    ("opset", "is_test", "flag", "trains"),
    [
        *((opset, 0, flag, True) for opset, flag in itertools.product((1, 6), (True, False, None))),
        *((opset, value, True, False) for opset, value in itertools.product((1, 6), (1, 2))),
        *((opset, None, False, None) for opset in (1, 6)),
        *((opset, 0, flag, False) for opset, flag in itertools.product((7, 10, 11), (True, False, None))),
        *((opset, 0, flag, flag) for opset, flag in itertools.product((12, 13, 22), (True, False, None))),
    ],
)
def test_whether_a_dropout_trains(opset, is_test, flag, trains):
    """From the operator's versions 1, 6, 7, 10, 12, 13 and 22 in ONNX's own documentation."""
    assert dropout_trains(opset, is_test, flag) is trains


@pytest.mark.parametrize(
    ("opset", "is_test", "mode", "statistics", "trains"),
    [
        *((opset, 0, 0, statistics, True) for opset, statistics in itertools.product((1, 6), (True, False))),
        *((opset, 1, 0, statistics, False) for opset, statistics in itertools.product((1, 6), (True, False))),
        *((opset, None, 0, False, None) for opset in (1, 6)),
        *((opset, 0, 0, statistics, statistics) for opset, statistics in itertools.product((7, 9, 13), (True, False))),
        *((opset, 0, 0, statistics, False) for opset, statistics in itertools.product((14, 15), (True, False))),
        *((opset, 0, mode, False, trains) for opset in (14, 15) for mode, trains in ((1, True), (None, None))),
    ],
)
def test_whether_a_batchnorm_trains(opset, is_test, mode, statistics, trains):
    assert batchnorm_trains(opset, is_test, mode, statistics) is trains


def last(text, header='<ir_version: 9, opset_import: ["" : 13]>'):
    return list(sites(parsed(f"{header}\n{text}", check=False)))[-1]


FLAGS = {
    "left out": ("y = Dropout(x)", False),
    "an empty name": ('y = Dropout(x, "", "")', False),
    "a constant that is off": ("f = Constant<value = bool {0}>() y = Dropout(x, r, f)", False),
    "a constant that is on": ("f = Constant<value = bool {1}>() y = Dropout(x, r, f)", True),
    "a tensor of several": ("f = Constant<value = bool[2] {0, 1}>() y = Dropout(x, r, f)", True),
    "an initializer that is off": ("y = Dropout(x, r, off)", False),
    "an input": ("y = Dropout(x, r, flag)", True),
    "an input with a default": ("y = Dropout(x, r, default)", True),
    "computed": ("f = Not(on) y = Dropout(x, r, f)", True),
    "not of ONNX": ("y = local.Dropout(x, r, flag)", False),
    "no boolean": ("y = Dropout(x, r, zero)", True),
}


@pytest.mark.parametrize(("body", "may"), FLAGS.values(), ids=FLAGS.keys())
def test_what_the_file_says_of_a_flag(body, may):
    text = f"""
        g (float[4] x, bool flag, bool default = {{0}}) => (float[4] y)
        <bool on = {{1}}, bool off = {{0}}, int64 zero = {{0}}, float r = {{0.5}}> {{ {body} }}"""
    site = last(text)
    assert dropout_may_train(site) is may
    assert may_be_noise(site) is may


def test_an_attribute_of_the_caller_is_not_known():
    text = """
        g (float[4] x) => (float[4] y) { y = local.Block <mode = 0> (x) }
        <domain: "local", opset_import: ["" : 14]>
        Block <mode> (x) => (y) { y = BatchNormalization <training_mode : int = @mode> (x, x, x, x, x) }"""
    assert batchnorm_may_train(last(text))
    assert not batchnorm_may_train(last(text.replace(": int = @mode", "= 0")))


def test_a_function_has_its_own_opset():
    text = """
        g (float[4] x) => (float[4] y) { y = local.Block(x) }
        <domain: "local", opset_import: ["" : 6]>
        Block (x) => (y) { y = Dropout(x) }"""
    assert dropout_may_train(last(text))
    assert not dropout_may_train(last(text.replace('"" : 6', '"" : 7')))


def test_random_nodes_are_named_where_they_stand():
    text = """
        g (float[4] x) => (float[4] y) <bool on = {1}, float r = {0.5}> {
          [draw] u = RandomUniformLike(x)
          [drop] d = Dropout(u, r, on)
          [norm] n = BatchNormalization <training_mode = 1> (d, x, x, x, x)
          y = Identity(n)
        }"""
    assert random_nodes(parsed('<ir_version: 9, opset_import: ["" : 14]>' + text, check=False)) == [
        "draw (RandomUniformLike)",
        "drop (Dropout)",
    ]
