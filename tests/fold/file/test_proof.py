"""The proof of a fold finds a wrong x, noise that is left, and noise that is not what it was read as."""

import dataclasses
import re

import numpy as np
import onnx
from support.noisy_files import dropout, graph_model, mask, node

from jumpout_export.fold.file.copies import neutral_copy, observed_copy
from jumpout_export.fold.file.factors import Keep
from jumpout_export.fold.file.observe import observe
from jumpout_export.fold.file.proof import prove
from jumpout_export.fold.file.read import read_noise
from jumpout_export.runtime.session import open_session


def read(nodes):
    return read_noise(onnx.shape_inference.infer_shapes(graph_model(nodes)))


def test_a_wrong_x_is_found_by_the_file_with_its_rates_at_zero(tmp_path):
    path = tmp_path / "wrong.onnx"
    path.write_bytes(graph_model([node("Identity", "h", "z")]).SerializeToString())  # h where the fold would say r
    reading = read(mask())
    checks, _ = prove(path, neutral_copy(reading.graph, reading.noise), 0)
    assert {check.name: check.verdict for check in checks}["proof/rates at zero"] == "fail"


def test_a_file_that_is_still_random_is_found(tmp_path):
    path = tmp_path / "random.onnx"
    path.write_bytes(graph_model([dropout()]).SerializeToString())
    reading = read(mask())
    checks, _ = prove(path, neutral_copy(reading.graph, reading.noise), 0)
    assert {check.name: check.verdict for check in checks}["proof/repeatable"] == "fail"


def watched(nodes, change=lambda site: site, runs=8):
    reading = read(nodes)
    noisy = open_session(observed_copy(reading.typed, reading.noise.sites), "cpu", "off")
    feeds = {"x": np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)}
    return observe([noisy(feeds) for _ in range(runs)], [change(site) for site in reading.noise.sites])


def with_factor(**changes):
    return lambda site: dataclasses.replace(site, factor=dataclasses.replace(site.factor, **changes))


def test_noise_that_is_not_what_the_graph_was_read_as_is_found():
    assert watched(mask()).verdict == "pass"
    assert watched([dropout()]).verdict == "pass"
    wrong_scale = watched(mask(), with_factor(number=1.5))
    assert "makes something else of x than 0 or x times the scale" in wrong_scale.note

    def rarer(site):
        masks = frozenset(dataclasses.replace(mask, keep=Keep(0.9)) for mask in site.factor.masks)
        return dataclasses.replace(site, factor=dataclasses.replace(site.factor, masks=masks))

    wrong_rate = watched(mask(), rarer)
    assert wrong_rate.verdict == "fail"
    assert re.search(r"drops 0\.\d+ of the values, where its mask says 0\.1", wrong_rate.note)


def test_watching_a_right_file_raises_no_false_alarm():
    assert all(watched(mask()).verdict == "pass" for _ in range(40))
