"""One training loop: repeatable, resumable bit for bit, and its measurements agree with independent ones."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.experiments_data import write_folders
from support.project import PROJECT
from support.ranks import run_ranks
from support.warm import warm_python
from torch import nn

from experiments.config import Config
from experiments.datasets import Images, read_images
from experiments.paper import done, jobs, main
from experiments.ratios import measure_ratios
from experiments.regularizers import ConcreteDropout
from experiments.results import read_result
from experiments.run import run
from experiments.training import Process, evaluate, normalise, train
from experiments.watch import active_fractions, rate
from jumpout_export import Jumpout

pytestmark = pytest.mark.integration

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Images:
    return read_images(write_folders(tmp_path_factory.mktemp("digits"), 300, 100))


def config(**changes) -> Config:
    settings = {
        "rows": ["Table 2"],
        "label": "jumpout",
        "network": "cifar10s",
        "options": {"width": 0.125},
        "regularizer": {"kind": "jumpout", "sigma": 0.1},
        "training": {"epochs": 2, "batch_size": 50, "learning_rate": 0.1},
    }
    return Config(**{**settings, **changes})


def same(one: nn.Module, two: nn.Module) -> bool:
    a, b = one.state_dict(), two.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def without_seconds(epochs):
    return [epoch.model_dump(exclude={"seconds"}) for epoch in epochs]


def test_training_learns_and_repeats_bit_for_bit(images):
    longer = config(training={"epochs": 4, "batch_size": 50, "learning_rate": 0.1})
    one, epochs = train(longer, images, 3, CPU)
    two, again = train(longer, images, 3, CPU)
    assert same(one, two)
    assert without_seconds(epochs) == without_seconds(again)
    assert epochs[-1].train_loss < epochs[0].train_loss
    assert epochs[-1].test_accuracy > 0.3  # ten classes
    other, _ = train(longer, images, 4, CPU)
    assert not same(one, other)


class Killed(BaseException):
    """What ends a run from outside."""


def test_a_killed_run_ends_as_an_uninterrupted_one(images, tmp_path):
    settings = config(training={"epochs": 3, "batch_size": 50, "reestimate": [2]}, data={"augment": True})
    expected, epochs = train(settings, images, 0, CPU)
    checkpoint = tmp_path / "run.pt"

    def kill(line: str) -> None:
        if line.startswith("epoch 2/3"):
            raise Killed

    with pytest.raises(Killed):
        train(settings, images, 0, CPU, checkpoint, kill)
    torch.manual_seed(99)
    lines: list[str] = []
    found, again = train(settings, images, 0, CPU, checkpoint, lines.append)
    assert len(lines) == 1
    assert same(expected, found)
    assert without_seconds(epochs) == without_seconds(again)
    assert epochs[1].reestimated_accuracy is not None
    with pytest.raises(ValueError, match=r"run.pt belongs to another configuration or seed; remove it to start anew"):
        train(settings, images, 1, CPU, checkpoint)


def test_testing_with_serving_statistics_changes_no_training(images):
    plain, expected = train(config(regularizer={"kind": "dropout", "p": 0.5}), images, 0, CPU)
    training = {"epochs": 2, "batch_size": 50, "learning_rate": 0.1, "serving": 4}
    network, epochs = train(config(regularizer={"kind": "dropout", "p": 0.5}, training=training), images, 0, CPU)
    assert same(network, plain)
    added = ("serving_loss", "serving_accuracy")
    assert [{**epoch, **dict.fromkeys(added)} for epoch in without_seconds(epochs)] == without_seconds(expected)
    assert epochs[0].serving_loss != pytest.approx(epochs[0].test_loss, rel=0.01)  # other statistics
    assert 0 <= epochs[-1].serving_accuracy <= 1


@pytest.mark.parametrize("kind", [{"kind": "none"}, {"kind": "dropout", "p": 0.2}, {"kind": "concrete"}])
def test_every_regularizer_runs_through_the_loop(images, kind):
    network, epochs = train(config(regularizer=kind, training={"epochs": 1, "batch_size": 50}), images, 0, CPU)
    assert set(epochs[0].active) == {name for name, module in network.named_modules() if isinstance(module, nn.ReLU)}
    if kind["kind"] == "dropout":
        assert set(epochs[0].rate.values()) == {0.2}
    if kind["kind"] == "concrete":
        rates = [rate(module) for module in network.modules() if isinstance(module, ConcreteDropout)]
        assert all(value != pytest.approx(0.1, abs=1e-6) for value in rates)  # learned


def test_bfloat16_trains_and_float16_needs_cuda(images):
    _, epochs = train(config(training={"epochs": 1, "batch_size": 50, "precision": "bfloat16"}), images, 0, CPU)
    assert 0 < epochs[0].train_loss < 10
    with pytest.raises(ValueError, match="precision float16 needs a CUDA device; bfloat16 runs on a CPU too"):
        train(config(training={"epochs": 1, "precision": "float16"}), images, 0, CPU)


@pytest.mark.slow
def test_a_compiled_step_trains_the_same_network(images):
    plain = {"regularizer": {"kind": "none"}, "training": {"epochs": 1, "batch_size": 50, "learning_rate": 0.01}}
    _, (eager,) = train(config(**plain), images, 0, CPU)
    plain["training"]["compile"] = True
    network, (compiled,) = train(config(**plain), images, 0, CPU)
    assert compiled.train_loss == pytest.approx(eager.train_loss, rel=1e-3)
    assert compiled.active.keys() == eager.active.keys()
    for name, spread in compiled.active.items():
        assert spread.mean == pytest.approx(eager.active[name].mean, abs=0.02)
    assert all("_orig_mod" not in name for name in network.state_dict())


def test_a_loss_that_is_no_number_ends_the_run(images):
    settings = config(options={"width": 0.125, "batchnorm": False}, training={"epochs": 2, "learning_rate": 1e6})
    with pytest.raises(ValueError, match=r"the training loss is \S+ in epoch \d; lower learning_rate"):
        train(settings, images, 0, CPU)
    with pytest.raises(ValueError, match="batch_size is 301, there are only 300 training images"):
        train(config(training={"epochs": 1, "batch_size": 301}), images, 0, CPU)


def test_active_fractions_are_those_of_the_relu_outputs(images):
    network = config().build(10, (3, 16, 16)).eval()
    x = normalise(images.test)
    with active_fractions(network) as watch, torch.no_grad():
        network(x)
        assert watch.values() == {}
        watch.on = True
        network(x)
        found = watch.values()
    inputs = network.conv1_bn(network.conv1(x))
    assert found["conv1_relu"] == [pytest.approx(float((inputs > 0).double().mean()))]
    assert list(found)[-1] == "fc2_relu"
    assert not any(module._forward_hooks for module in network.modules())


def test_evaluation_is_the_mean_over_images_whatever_the_batches(images):
    network = config().build(10, (3, 16, 16))
    loss, accuracy = evaluate(network, images.test, images.test_labels, CPU)
    assert network.training
    network.eval()
    with torch.no_grad():
        logits = network(normalise(images.test))
    assert loss == pytest.approx(float(nn.functional.cross_entropy(logits, images.test_labels)), rel=1e-5)
    assert accuracy == int((logits.argmax(1) == images.test_labels).sum()) / 100


@pytest.mark.parametrize(("p", "alpha"), [(0.2, 1.0), (0.2, 0.75), (0.1, 0.5)])
def test_ratios_at_the_first_noisy_layer_follow_the_closed_form(images, p, alpha):
    torch.manual_seed(1)
    noise = {"kind": "jumpout", "p": p, "normalize": "none", "alpha": alpha}
    network = config(regularizer=noise, options={"width": 0.25}).build(10, (3, 16, 16))
    x = normalise(images.train)
    network(x)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    rows = measure_ratios(network, x, alone=True, draws=12)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    first = next(row for row in rows if row.mode == "stored")
    assert first.layer == "conv2"
    assert first.keep == pytest.approx(1 - p, abs=1e-3)
    assert first.mean == pytest.approx((1 - p) ** (1 - alpha), abs=max(6 * first.mean_error, 1e-3))
    assert first.variance == pytest.approx(first.variance_expected, abs=max(6 * first.variance_error, 2e-3))
    assert 6 * first.variance_error < 0.05  # the bound above says something
    alone = {row.layer: row for row in rows if row.mode == "alone"}
    assert list(alone) == ["conv2", "conv4", "conv5", "fc1", "fc2", "head"]
    for layer in ("conv2", "conv5", "fc2", "head"):  # the others lie behind max pooling
        row = alone[layer]
        assert row.mean == pytest.approx(row.mean_expected, abs=max(6 * row.mean_error, 1e-3))
        assert row.variance == pytest.approx(row.variance_expected, abs=max(6 * row.variance_error, 2e-3))
        assert 6 * row.variance_error < 0.3


def test_the_closed_form_tells_a_wrong_scale(images):
    class TooLarge(Jumpout):
        def forward(self, x):
            return super().forward(x) * (1.05 if self.training else 1.0)

    torch.manual_seed(1)
    noise = {"kind": "jumpout", "p": 0.2, "normalize": "none"}
    network = config(regularizer=noise, options={"width": 0.25}).build(10, (3, 16, 16))
    network.conv1_noise = TooLarge(p=0.2, normalize="none")
    first = next(row for row in measure_ratios(network, normalise(images.train)) if row.mode == "stored")
    assert abs(first.mean - first.mean_expected) > 6 * first.mean_error
    assert abs(first.variance - first.variance_expected) > 6 * first.variance_error


def test_a_run_ends_with_check_fix_export_and_a_result(images, tmp_path):
    result = run(config(ratios=True), "tiny", images, 0, tmp_path, CPU, say=lambda _: None)
    assert read_result(tmp_path / "tiny-0.json") == result
    assert not (tmp_path / "tiny-0.pt").exists()
    served = result.served
    assert served.exported, served.export_problem
    assert list(served.w) == ["conv1_bn", "conv2_bn", "conv4_bn", "conv5_bn", "fc1_bn", "fc2_bn"]
    assert served.w_after < 1e-3 < max(served.w.values())
    assert result.epochs[-1].test_accuracy == pytest.approx(served.accuracy, abs=1e-4)
    assert {row.mode for row in result.epochs[0].ratios} == {"batch", "stored"}
    assert {row.mode for row in result.epochs[-1].ratios} == {"batch", "stored", "alone"}


TOML = (
    'rows = ["Table 2", "Fig 2"]\nlabel = "{name}"\nnetwork = "cifar10s"\noptions = {{ width = 0.125 }}\n'
    "regularizer = {kind}\n[training]\nepochs = 1\nbatch_size = 50\n"
)


@pytest.mark.slow
def test_two_processes_share_every_batch(tmp_path):
    data = write_folders(tmp_path / "digits")
    (tmp_path / "dropout.toml").write_text(TOML.format(name="dropout", kind='{ kind = "dropout", p = 0.1 }'))
    command = ["-m", "experiments.run", tmp_path / "dropout.toml", "--data", data, "--out", tmp_path, "--device", "cpu"]
    ranks = run_ranks(2, *command, cwd=PROJECT)
    assert [code for code, _, _ in ranks] == [0, 0], [err for _, _, err in ranks]
    said = [out.count("dropout seed 0: test accuracy") for _, out, _ in ranks]
    assert said == [1, 0]  # the first process speaks for both
    result = read_result(tmp_path / "dropout-0.json")
    assert result.served.exported, result.served.export_problem
    assert result.epochs[0].train_accuracy <= 1


def test_an_uneven_share_of_a_batch_is_refused(images):
    with pytest.raises(ValueError, match="batch_size 50 must be a multiple of the 3 processes"):
        train(config(), images, 0, CPU, process=Process(0, 3))


def write_protocol(folder: Path) -> Path:
    folder.mkdir()
    for name, kind in (("none", '{ kind = "none" }'), ("dropout", '{ kind = "dropout", p = 0.1 }')):
        (folder / f"{name}.toml").write_text(TOML.format(name=name, kind=kind))
    return folder


@pytest.mark.slow
def test_the_protocol_runs_to_its_tables_and_repeats_nothing(tmp_path, monkeypatch, capsys):
    data, configs, out = write_folders(tmp_path / "digits"), write_protocol(tmp_path / "configs"), tmp_path / "out"
    words = ["--data", data, "--configs", configs, "--out", out]
    first = subprocess.run(
        [*warm_python(), "-m", "experiments.paper", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=PROJECT,
        check=False,
    )
    assert first.returncode == 0, first.stderr
    assert "0 of 2 runs are there" in first.stderr
    text = (out / "README.md").read_text()
    assert "## Table 2: the CIFAR10(s) column" in text
    assert "2 of 2 networks were exported and verified" in text
    accuracy = json.loads((out / "dropout-0.json").read_text())["served"]["accuracy"]
    assert f"| dropout | 86.50 | 0.10 | {100 * accuracy:.1f} (1) |" in text
    assert (out / "figures" / "cpu" / "fig2.svg").read_text().startswith("<?xml")

    monkeypatch.setattr(sys, "argv", ["experiments.paper", *map(str, words)])
    main()
    said = capsys.readouterr().err
    assert "2 of 2 runs are there" in said
    assert "nothing is run: the tables are made of these results" in said
    assert (out / "README.md").read_text() == text
    job = jobs(configs)[0]
    assert done(job, out)
    (configs / f"{job.name}.toml").write_text(
        (configs / f"{job.name}.toml").read_text().replace("epochs = 1", "epochs = 2")
    )
    assert not done(jobs(configs)[0], out)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["experiments.paper", "--data", "nowhere", "--out", "there"], "error: there is no folder nowhere"),
        (["experiments.paper", "--workers", "0"], "--workers must be at least 1, got 0"),
        (["experiments.run", "x.toml", "--data", "nowhere", "--device", "foo"], "error: --device foo cannot be used: "),
        (["experiments.run", "x.toml", "--data", "nowhere"], "error: there is no folder nowhere"),
        (["experiments.repeat", "none", "--data", "nowhere"], "error: there is no folder nowhere"),
    ],
)
def test_wrong_arguments_end_with_one_line(arguments, says, tmp_path):
    there = [str(tmp_path) if word == "there" else word for word in arguments]
    root = PROJECT
    done = subprocess.run([*warm_python(), "-m", *there], capture_output=True, text=True, cwd=root, check=False)
    assert done.returncode != 0
    assert says in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
