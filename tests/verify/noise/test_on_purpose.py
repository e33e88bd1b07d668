"""Files that are random on purpose: published only as such, and only with the model's distribution."""

import copy

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper
from support.reports import found
from torch import nn
from typer.testing import CliRunner

from jumpout_export import export_onnx, fold_onnx, inspect_onnx, verify_onnx
from jumpout_export.cli.app import app
from jumpout_export.model.signature import onnx_batch
from jumpout_export.onnxfile.metadata import RANDOM
from jumpout_export.render.headline import headline
from jumpout_export.verify.noise.on_purpose import verify_random
from jumpout_export.verify.noise.purpose import OnPurpose, purpose_of
from jumpout_export.verify.noise.quiet import switched_off
from jumpout_export.verify.noise.sums import limit_of

pytestmark = pytest.mark.integration

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
RUNS = 1000


class MonteCarlo(nn.Dropout):
    """Dropout that stays on, as Gal and Ghahramani use it."""

    def train(self, mode=True):
        return super().train(True)


class Functional(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5, training=True)


class Mask(nn.Module):
    def forward(self, x):
        return x * (torch.rand_like(x) < 0.5) / 0.5


class Unused(nn.Module):
    """Draws, without an effect on the result."""

    def forward(self, x):
        torch.rand_like(x)
        return x


class Numpy(nn.Module):
    def forward(self, x):
        return x * float(np.random.rand())


def network(layer):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), layer, nn.Linear(16, 3)).eval()


def noisy():
    return network(MonteCarlo(0.5))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    path = tmp_path_factory.mktemp("random") / "model.onnx"
    return path, export_onnx(noisy(), path, X, allow="2")


def compared(path, model, runs=RUNS):
    return verify_random(path, model.eval(), iter([onnx_batch(X, model)]), ("cpu",), allow=("2",), runs=runs)


def test_without_allow_nothing_is_published(tmp_path):
    report = export_onnx(noisy(), tmp_path / "model.onnx", X)
    assert not report
    assert "randomness" in found(report)
    assert not (tmp_path / "model.onnx").exists()


def test_with_allow_the_file_is_published_and_says_everywhere_that_it_is_random(published):
    path, report = published
    assert report, found(report)
    text = "random on purpose: 1 node (node_native_dropout__1 (Dropout)), allowed in `2`"
    assert f"NOT deterministic: {text}" in report.notes
    assert report.provenance[RANDOM] == text
    assert {entry.key: entry.value for entry in onnx.load(path).metadata_props}[RANDOM] == text
    assert "is random on purpose, NOT deterministic" in headline(report)[1]
    notes = {check.name: check.note for check in report.checks}
    assert notes["file/training dropout"].startswith(text)
    assert notes["cpu/off/random"] == "random on purpose: runs differ"
    assert "NOT random on cpu with ONNX Runtime's default optimizations" in " ".join(report.notes)
    assert "call onnxruntime.set_seed with a random number before each run" in " ".join(report.notes)
    assert any(name.startswith("without noise/cpu/all/") for name in notes)  # the network without noise was compared


def test_no_other_check_takes_that_file_for_deterministic(published):
    path, _ = published
    assert "file/training dropout" in found(inspect_onnx(path))
    assert not verify_onnx(path, noisy(), X)


@pytest.mark.parametrize("layer", [Functional(), Mask()], ids=["functional", "mask"])
def test_noise_that_is_no_layer_is_published_too(layer, tmp_path):
    report = export_onnx(network(layer), tmp_path / "model.onnx", X, allow="2")
    assert report, found(report)
    compared_without = any(check.name.startswith("without noise/") for check in report.checks)
    assert compared_without is isinstance(layer, Functional)
    if not compared_without:
        assert "the network without noise was not compared, the distributions alone were" in " ".join(report.notes)
        assert "random on cpu with ONNX Runtime's default optimizations too" in " ".join(report.notes)


def changed(path, out, change):
    model = onnx.load(path)
    change(model.graph)
    onnx.save(model, out)
    return out


def set_rate(rate):
    def change(graph):
        node = next(node for node in graph.node if node.op_type == "Dropout")
        tensor = numpy_helper.from_array(np.float32(rate), "another_rate")
        graph.initializer.append(tensor)
        node.input[1] = "another_rate"

    return change


def move_weight(graph):
    tensor = next(tensor for tensor in graph.initializer if tensor.name == "3.bias")
    array = numpy_helper.to_array(tensor).copy()
    array[1] += 0.3
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def without_training(graph):
    node = next(node for node in graph.node if node.op_type == "Dropout")
    graph.initializer.append(numpy_helper.from_array(np.array(False), "off"))
    node.input[2] = "off"


def test_the_right_file_passes_and_wrong_ones_fail_by_name(published, tmp_path):
    path, _ = published
    assert compared(path, noisy())
    for rate in (0.3, 0.65):
        report = compared(changed(path, tmp_path / "rate.onnx", set_rate(rate)), noisy())
        assert set(found(report)) == {"cpu/off/distribution"}
    report = compared(changed(path, tmp_path / "weight.onnx", move_weight), noisy())
    assert "cpu/off/distribution" in found(report)
    assert "mean of output `output`, index (" in found(report)["cpu/off/distribution"]
    assert any(name.startswith("without noise/cpu/off") for name in found(report))
    report = compared(changed(path, tmp_path / "off.onnx", without_training), noisy())
    assert found(report)["cpu/off/random"] == "runs do not differ: the noise is gone"
    assert report.providers["cpu"].verdict == "fail"


def larger_batches_doubled(graph):
    """The output is twice as large from five samples on."""
    node, output = graph.node[-1], graph.output[0].name
    node.output[0] = "before"
    constants = {"four": np.int64(4), "one": np.float32(1), "two": np.float32(2), "first": np.array([0])}
    graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items())
    graph.node.extend(
        [
            helper.make_node("Shape", ["before"], ["shape"]),
            helper.make_node("Gather", ["shape", "first"], ["images"]),
            helper.make_node("Greater", ["images", "four"], ["many"]),
            helper.make_node("Where", ["many", "two", "one"], ["factor"]),
            helper.make_node("Mul", ["before", "factor"], [output]),
        ]
    )


def test_noise_that_cannot_be_switched_off_is_compared_at_several_batch_sizes(tmp_path):
    model = network(Mask())
    report = export_onnx(model, tmp_path / "model.onnx", X, allow="2")
    assert report, found(report)
    names = {check.name for check in report.checks}
    assert {f"cpu/off/batch={size}/distribution" for size in (1, 2, 7)} <= names
    wrong = changed(tmp_path / "model.onnx", tmp_path / "wrong.onnx", larger_batches_doubled)
    assert set(found(compared(wrong, model))) == {"cpu/off/batch=7/distribution"}
    fixed = export_onnx(model, tmp_path / "fixed.onnx", X, allow="2", dynamic_batch=False)
    assert fixed, found(fixed)
    assert "cpu/off/distribution" in {check.name for check in fixed.checks}


def test_other_outputs_fail_before_anything_is_drawn(published):
    path, _ = published

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = noisy()

        def forward(self, input):  # noqa: A002 the name of the file's input
            return {"logits": self.model(input)}

    report = verify_random(path, Named().eval(), iter([onnx_batch(X, Named())]), ("cpu",), allow=("model.2",))
    assert "the file's outputs are output, the model's logits" in found(report)["cpu/off/outputs"]


def test_a_module_that_draws_without_an_effect_is_still_proven_deterministic(tmp_path):
    report = export_onnx(network(Unused()), tmp_path / "model.onnx", X, allow="2")
    assert report, found(report)
    assert not any("random on purpose" in note for note in report.notes)
    assert RANDOM not in report.provenance
    assert inspect_onnx(tmp_path / "model.onnx")


def test_noise_that_the_converter_bakes_in_is_refused(tmp_path):
    report = export_onnx(network(Numpy()), tmp_path / "model.onnx", X, allow="2")
    assert not report
    assert not (tmp_path / "model.onnx").exists()


def test_noise_outside_of_allow_is_refused(tmp_path):
    model = nn.Sequential(noisy(), Mask()).eval()
    report = export_onnx(model, tmp_path / "model.onnx", X, allow="0.2")
    assert "in module `1`" in found(report)["randomness"]


REFUSED = (
    "golden data cannot be made for a file that is random on purpose: there is no output to replay, because each "
    r"depends on the random numbers allowed in `2` \(allow, --allow\); leave golden \(--golden\) out"
)


def test_golden_data_of_a_random_file_is_refused_before_it_is_converted(tmp_path):
    steps = []
    with pytest.raises(ValueError, match=REFUSED):
        export_onnx(
            noisy(),
            tmp_path / "model.onnx",
            X,
            allow="2",
            golden=tmp_path / "golden",
            progress=lambda step, *_: steps.append(step),
        )
    assert steps == ["export: audit", "export: fold"]
    assert list(tmp_path.iterdir()) == []


def test_golden_data_is_refused_too_where_two_runs_do_not_show_the_noise(tmp_path):
    with pytest.raises(ValueError, match=REFUSED):
        export_onnx(network(MonteCarlo(1e-6)), tmp_path / "model.onnx", X, allow="2", golden=tmp_path / "golden")
    assert list(tmp_path.iterdir()) == []


def test_golden_data_is_made_where_what_is_drawn_has_no_effect(tmp_path):
    assert export_onnx(network(Unused()), tmp_path / "model.onnx", X, allow="2", golden=tmp_path)
    assert (tmp_path / "test_data_set_0" / "output_0.pb").exists()


def metadata(path):
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def test_after_a_fold_the_file_does_not_say_any_more_that_it_is_random(published, tmp_path):
    path, before = published
    report = fold_onnx(path, tmp_path / "out.onnx")
    assert report
    after, expected = metadata(tmp_path / "out.onnx"), metadata(path)
    assert expected.pop(RANDOM) == before.provenance[RANDOM]
    expected["jumpout_export.folded"] = "node_native_dropout__1 (Dropout): Dropout() -> identity"
    assert after == report.provenance == expected
    text = "noise that was wanted is gone, the file written is deterministic; the older one says: random on purpose: 1"
    assert any(note.startswith(text) for note in report.notes)
    assert headline(report)[0].text == "✓ PASS"


def test_a_failure_for_noise_says_how_it_is_allowed_where_it_can_be(published, tmp_path):
    model = nn.Sequential(noisy(), MonteCarlo(0.5)).eval()
    text = found(export_onnx(model, tmp_path / "model.onnx", X))["randomness"]
    hint = "Noise of torch that is wanted in the served file (Monte-Carlo dropout) is allowed by module: "
    assert text.endswith(f"{hint}--allow 0.2 --allow 1")
    assert found(export_onnx(MonteCarlo(0.5), tmp_path / "model.onnx", X))["randomness"].endswith("--allow ''")
    # `verify` takes no file that is random, and in an exported program nothing can be allowed.
    path, _ = published
    assert "allow" not in found(verify_onnx(path, noisy(), X))["randomness"]
    program = torch.export.export(network(Mask()), (X,))
    assert "allow" not in found(export_onnx(program, tmp_path / "model.onnx", X))["randomness"]


def test_inspect_says_what_the_metadata_says_of_the_noise(published, tmp_path):
    path, _ = published
    said = "the file's metadata says that it is random on purpose: 1 node (node_native_dropout__1 (Dropout))"
    (note,) = [note for note in inspect_onnx(path).notes if "on purpose" in note]
    assert note == f"{said}, allowed in `2`"
    clean = tmp_path / "clean.onnx"
    assert fold_onnx(path, clean)
    assert not any("on purpose" in note for note in inspect_onnx(clean).notes)
    model = onnx.load(clean)
    model.metadata_props.add(key=RANDOM, value="random on purpose")
    onnx.save(model, clean)
    assert (
        "the file's metadata says that it is random on purpose; but nothing in it is random"
        in inspect_onnx(clean).notes
    )
    report = fold_onnx(clean, clean)  # takes out what is not true
    assert report
    assert RANDOM not in metadata(clean)


def test_only_random_nodes_are_excused(published):
    path, _ = published
    checks = inspect_onnx(path).checks
    damaged = [check.model_copy(update={"verdict": "fail"}) for check in checks]
    kept = {check.name for check in OnPurpose(["node"], ("2",)).excused(damaged) if check.verdict == "fail"}
    assert kept == {check.name for check in checks} - {"file/random nodes", "file/training dropout"}


def mark(path, allow):
    purpose = purpose_of(onnx.load(path), allow)
    purpose.mark(path, onnx.load(path))
    return purpose.metadata


def test_a_file_without_random_nodes_is_not_marked(published, tmp_path):
    path, _ = published
    clean = tmp_path / "clean.onnx"
    assert fold_onnx(path, clean)
    before = clean.read_bytes()
    assert mark(clean, ("2",)) == {}
    assert clean.read_bytes() == before
    assert mark(path, ()) == {}


@pytest.mark.parametrize(
    "layer", [MonteCarlo(0.5), Functional(), nn.Dropout(0.5)], ids=["layer", "functional", "plain"]
)
def test_switched_off_noise_leaves_the_network_itself(layer):
    model = network(layer)
    with torch.no_grad():
        expected = model[3](model[1](model[0](X)))
        assert torch.equal(switched_off(model, ("2",))(X), expected)
        assert torch.equal(switched_off(model, ("",))(X), expected)


def test_the_limit_holds_for_rare_noise_and_grows_slowly_with_the_number_of_values():
    # exp(-t^2 / 2) * 4 values = 1e-6
    assert 4 * 50 * np.exp(-(limit_of(50) ** 2) / 2) == pytest.approx(1e-6)
    # Rare and heavy noise, for which a normal approximation of the sum would not hold.
    generator = np.random.default_rng(0)
    draws = [(generator.random((200, 2000)) < 0.01) * generator.standard_cauchy((200, 2000)) for _ in range(2)]
    differences = draws[0] - draws[1]
    shares = np.abs(differences.sum(0)) / np.sqrt((differences**2).sum(0).clip(1e-300))
    assert shares.max() < limit_of(2000)


def test_the_command_line_publishes_with_allow_only(tmp_path, monkeypatch):
    (tmp_path / "monte_carlo_factory.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class MonteCarlo(nn.Dropout):\n    def train(self, mode=True):\n        return super().train(True)\n"
        "def model():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Linear(6, 4), MonteCarlo(0.5), nn.Linear(4, 3))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    command = ["export", "monte_carlo_factory:model", "out.onnx", "--input-shape", "4,6"]
    assert CliRunner().invoke(app, command).exit_code == 1
    assert not (tmp_path / "out.onnx").exists()
    result = CliRunner().invoke(app, [*command, "--allow", "1"])
    assert result.exit_code == 0
    assert "random on purpose" in result.stdout
    assert (tmp_path / "out.onnx").exists()
    before = (tmp_path / "out.onnx").read_bytes()
    result = CliRunner().invoke(app, [*command, "--allow", "1", "--golden", "."])
    assert isinstance(result.exception, ValueError)  # which ends the process with 2
    assert (tmp_path / "out.onnx").read_bytes() == before


def test_the_models_class_and_state_stay():
    model = noisy()
    before = copy.deepcopy(model.state_dict())
    switched_off(model, ("",))
    assert type(model[2]) is MonteCarlo
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
