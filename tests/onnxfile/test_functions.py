"""Functions are counted before they are written out, and none may be taken for an operator of a runtime's own."""

import time

import numpy as np
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator
from support.function_cases import FUNCTIONS_WITHOUT_END, calling, chain
from support.onnx_files import parsed, saved
from support.static_files import found

from jumpout_export.errors import LoadError
from jumpout_export.fold.file.fold_file import fold_onnx
from jumpout_export.onnxfile.functions import MOST_NODES, unbounded
from jumpout_export.verify.inspect import inspect_onnx


@pytest.mark.parametrize(("model", "reason"), FUNCTIONS_WITHOUT_END.values(), ids=FUNCTIONS_WITHOUT_END.keys())
def test_functions_without_end_are_refused_at_once(model, reason, tmp_path):
    path = saved(model, tmp_path / "m.onnx")
    start = time.monotonic()
    for look in (inspect_onnx, lambda path: fold_onnx(path, tmp_path / "out.onnx")):
        with pytest.raises(LoadError, match=f"m.onnx: not a usable ONNX model .*{reason}") as error:
            look(path)
        assert "\n" not in str(error.value)
    assert time.monotonic() - start < 5
    assert not (tmp_path / "out.onnx").exists()


def test_work_is_counted_per_level_and_calls_of_one_function_in_many_places_are_fine():
    """80 blocks of a language model, each of 60 operators that are functions of 3 nodes themselves."""
    blocks = " ".join(f"v{i} = local.F0({'x' if i == 0 else f'v{i - 1}'})" for i in range(80))
    block = " ".join(f"w{i} = local.F1({'a' if i == 0 else f'w{i - 1}'})" for i in range(60))
    model = calling(f"{blocks} y = Neg(v79)", f"{block} b = Neg(w59)", "t = Neg(a) u = Neg(t) b = Neg(u)")
    assert unbounded(model) == ""
    nodes_in_functions = 80 * (61 + 60 * 3 * 2)
    assert nodes_in_functions < MOST_NODES / 5


def test_a_file_with_functions_that_call_each_other_passes(tmp_path):
    path = saved(chain(4, 3), tmp_path / "m.onnx")
    report = inspect_onnx(path)
    assert report, found(report)


def named(domain, name):
    """A function of that name which computes -x."""
    return parsed(
        f"""<ir_version: 10, opset_import: ["" : 18, "{domain}" : 1]>
        g (float[4] x) => (float[4] y) {{ y = {domain}.{name}(x) }}
        <domain: "{domain}", opset_import: ["" : 18]>
        {name} (a) => (b) {{ b = Neg(a) }}""",
        check=False,
    )


@pytest.mark.parametrize(
    ("domain", "name"),
    [
        ("com.microsoft", "Gelu"),
        ("com.microsoft", "QuickGelu"),
        ("com.microsoft.nchwc", "Conv"),
        ("com.ms.internal.nhwc", "Conv"),
        ("ai.onnx.ml", "Normalizer"),
        ("ai.onnx", "Relu"),
    ],
)
def test_a_function_with_the_name_of_a_runtimes_own_operator_is_refused(domain, name, tmp_path):
    path = saved(named(domain, name), tmp_path / "m.onnx")
    report = inspect_onnx(path)
    assert f"function `{domain}::{name}` may be an operator of a runtime's own" in found(report)["functions"].note
    assert not fold_onnx(path, tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("domain", ["local", "pkg.onnxscript.torch_lib", "com.microsofter", "my.ai.onnx"])
def test_a_function_of_a_domain_of_its_own_may_have_any_name(domain, tmp_path):
    report = inspect_onnx(saved(named(domain, "Gelu"), tmp_path / "m.onnx"))
    assert report, found(report)


def test_runtimes_differ_in_what_such_a_function_is():
    """Which is why it is refused; should they agree one day, the check can go."""
    model, x = named("com.microsoft", "Gelu"), np.array([-2, -1, 1, 2], np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": x})[0][3] == pytest.approx(1.954, abs=1e-3)  # ONNX Runtime's Gelu
    assert ReferenceEvaluator(model).run(None, {"x": x})[0][3] == -2
