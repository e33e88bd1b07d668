"""Exports into a Triton model repository: there lies the proven file, and only what an export wrote is replaced."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch
from support.architectures import build
from support.model_repository import answer, differences, model_of, parse
from support.onnx_files import parsed
from support.publish_worker import in_fork
from torch import nn

from jumpout_export.disk import private_folder
from jumpout_export.errors import ArgumentError
from jumpout_export.export.publish import export_onnx
from jumpout_export.export.replace import replace_export
from jumpout_export.export.triton import Served, check_entry, staged_entry
from jumpout_export.onnxfile.data import sha256_of
from jumpout_export.onnxfile.manifest import digests_of, read_manifest
from jumpout_export.verify.inspect import inspect_onnx

pytestmark = pytest.mark.integration


def small(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Dropout(), nn.Linear(4, 2))


X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


class PerSample(nn.Module):
    """Ids and a mask in, a dict of one value per sample and of several out."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(10, 8), nn.Linear(8, 3)

    def forward(self, ids, mask):
        y = self.head((self.embed(ids) * mask[..., None]).sum(1))
        return {"logits": y, "score": y.amax(1), "is_first": y.argmax(1) == 0}


class WithLoss(nn.Module):
    """A value of the whole batch."""

    def forward(self, x):
        return x.relu(), x.square().mean()


class WithTable(nn.Module):
    """An input without a batch axis."""

    def forward(self, x, table):
        return x @ table.T


IDS = {"ids": torch.randint(10, (4, 5)), "mask": torch.rand(4, 5) > 0.3}
CASES = {
    # a network, its example, settings, and whether requests share batches
    **{
        name: (*build(name, 1), {}, True)
        for name in ("VGG", "transformer", "one-dimensional", "two inputs", "LSTM", "MLP-Mixer")
    },
    "open axes": (*build("U-Net", 1), {"dynamic_axes": {"x": {2: "height", 3: "width"}}}, True),
    "dict of outputs": (PerSample(), IDS, {}, True),
    "half": (small(), X, {"dtype": torch.float16}, True),
    "double": (small().double(), X.double(), {}, True),
    "weights beside it": (nn.Sequential(nn.Linear(6, 64), nn.Linear(64, 64)), X, {"external_data": True}, True),
    "fixed batch": (small(), X, {"dynamic_batch": False}, False),
    "a scalar": (WithLoss(), X, {"dynamic_batch": False}, False),
    "a table": (WithTable(), (X, torch.randn(3, 6)), {}, False),
}


@pytest.mark.parametrize("name", CASES)
def test_triton_has_the_proven_file_and_what_it_is(name, tmp_path):
    model, example, settings, shared = CASES[name]
    report = export_onnx(model, tmp_path / "my_net-1.2.onnx", example, triton=tmp_path / "models", **settings)
    assert report, [check for check in report.checks if check.verdict != "pass"]
    entry = tmp_path / "models" / "my_net-1.2"
    config, proto = parse((entry / "config.pbtxt").read_text()), onnx.load(model_of(entry))
    assert config.name == entry.name
    assert differences(config, proto) == []
    assert (config.max_batch_size > 0) == shared
    for batch in (1, config.max_batch_size or 1):
        answer(entry, batch, open_size=16)
    # What lies there is what was proven, with nothing else beside it.
    assert sha256_of(model_of(entry)) == report.sha256 == config.parameters["jumpout_export.sha256"].string_value
    assert {path.name: sha256_of(path) for path in model_of(entry).parent.glob("*.data")} == report.data_sha256
    inspected = inspect_onnx(model_of(entry))
    assert inspected, inspected.checks
    assert "file/manifest" in {check.name for check in inspected.checks}
    assert not any("manifest" in note or "golden" in note for note in inspected.notes)
    assert sorted(path.name for path in entry.iterdir()) == ["1", "config.pbtxt"]
    assert os.listdir(tmp_path / "models") == ["my_net-1.2"]
    assert not any(path.name.startswith(".") for path in tmp_path.iterdir())
    (said,) = [note for note in report.notes if "for Triton" in note]
    assert str(entry) in said
    assert ("share batches of up to 16 samples" in said) == shared
    assert ("do not share batches (max_batch_size 0), because" in said) != shared
    assert any("Triton runs it on the CPU alone" in note for note in report.notes)


def test_a_changed_file_there_is_named(tmp_path):
    assert export_onnx(small(), tmp_path / "net.onnx", X, triton=tmp_path)
    model = model_of(tmp_path / "net")
    proto = onnx.load(model)
    proto.producer_version = "other"
    onnx.save(proto, model)
    failed = [check.note for check in inspect_onnx(model).checks if check.verdict == "fail"]
    assert failed == ["model.onnx is not the file that was proven (its sha256 differs)"]


def test_an_older_export_is_replaced_whole(tmp_path):
    """With weights beside it and without: nothing of the older layout stays."""
    for seed, external in enumerate((True, False)):
        model = nn.Sequential(nn.Linear(6, 64), nn.Linear(64, 64))
        report = export_onnx(model, tmp_path / "net.onnx", X, triton=tmp_path / "models", external_data=external)
        assert report, seed
        assert sha256_of(model_of(tmp_path / "models" / "net")) == report.sha256
        assert inspect_onnx(model_of(tmp_path / "models" / "net"))
    assert sorted(path.name for path in (tmp_path / "models").rglob("*")) == [
        *("1", "config.pbtxt", "model.manifest.json", "model.onnx", "net")
    ]


def test_what_does_not_pass_leaves_no_entry_and_no_repository(tmp_path):
    constant = nn.Sequential(nn.Linear(6, 4), nn.Softmax(0), nn.Threshold(2.0, 0.0))
    assert not export_onnx(constant, tmp_path / "net.onnx", X, triton=tmp_path / "models")
    assert os.listdir(tmp_path) == []


@pytest.fixture
def entry(tmp_path):
    """An entry as an export leaves it, of small files, without the seconds that one takes."""
    publish(tmp_path, 0)
    return tmp_path / "models" / "net"


def publish(folder: Path, seed: int) -> None:
    """Publishes a file and its entry as the last step of an export does; `seed` is in all of them."""
    model = parsed("g (float[batch,2] x) => (float[batch,2] y) {y = Relu(x)}")
    model.producer_version = str(seed)
    target = folder / "net.onnx"
    with private_folder(target) as private:
        file = private / target.name
        file.write_bytes(model.SerializeToString())
        manifest = digests_of(file, None, None)
        place = check_entry(folder / "models", target, ("cpu",))
        with staged_entry(Served(file, None, model, manifest, ("cpu",)), place, target) as staged:
            replace_export(file, None, target, None, None, manifest.write(private / "manifest"), staged)


def state(entry: Path) -> str:
    """The number of the export in an entry; `away`, or what is wrong with it."""
    if not entry.exists():
        return "away"
    if problems := [
        check.note
        for check in inspect_onnx(model_of(entry)).checks
        if check.name == "file/manifest" and check.verdict != "pass"
    ]:
        return problems[0]
    config = parse((entry / "config.pbtxt").read_text())
    mixed = config.parameters["jumpout_export.sha256"].string_value != sha256_of(model_of(entry))
    return "mixed" if mixed else onnx.load(model_of(entry)).producer_version


CHANGES = {
    "config.pbtxt": lambda entry: (entry / "config.pbtxt").write_text("name: 'net'"),
    "1/model.onnx": lambda entry: (entry / "1" / "model.onnx").write_bytes(b"another"),
    "2/model.onnx": lambda entry: shutil.copytree(entry / "1", entry / "2", ignore=shutil.ignore_patterns("*.json")),
    "labels.txt": lambda entry: (entry / "labels.txt").write_text("cat"),
    "1/link": lambda entry: (entry / "1" / "link").symlink_to(entry),
}


@pytest.mark.parametrize("changed", CHANGES)
def test_what_was_changed_since_is_not_replaced(changed, entry, tmp_path):
    check_entry(entry.parent, tmp_path / "net.onnx", ("cpu",))  # as it is, it would be
    CHANGES[changed](entry)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ArgumentError, match=f"net is not replaced, because {changed} there was changed or added after"):
        export_onnx(small(), tmp_path / "net.onnx", X, triton=entry.parent)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_missing_file_is_a_change(entry, tmp_path):
    (entry / "config.pbtxt").unlink()
    with pytest.raises(ArgumentError, match=r"because config\.pbtxt there was changed"):
        check_entry(entry.parent, tmp_path / "net.onnx", ("cpu",))


def test_what_no_export_wrote_is_not_replaced(tmp_path):
    entry = tmp_path / "net" / "1"
    entry.mkdir(parents=True)
    check_entry(tmp_path, tmp_path / "net.onnx", ("cpu",))  # nothing is lost
    (entry / "model.plan").write_bytes(b"of TensorRT")
    with pytest.raises(ArgumentError, match=r"because no export wrote what lies there \(1/model\.plan\)"):
        check_entry(tmp_path, tmp_path / "net.onnx", ("cpu",))
    (entry / "model.manifest.json").write_text("{}")
    with pytest.raises(ArgumentError, match=r"no export wrote what lies there \(it is no manifest\)"):
        check_entry(tmp_path, tmp_path / "net.onnx", ("cpu",))
    shutil.rmtree(tmp_path / "net")
    (tmp_path / "net").symlink_to(tmp_path)
    with pytest.raises(ArgumentError, match="triton is a symbolic link to"):
        check_entry(tmp_path, tmp_path / "net.onnx", ("cpu",))
    (tmp_path / "net").unlink()
    (tmp_path / "net").write_text("a file")
    with pytest.raises(ArgumentError, match="net is a file, and has to be a folder"):
        check_entry(tmp_path, tmp_path / "net.onnx", ("cpu",))


def test_a_manifest_of_an_export_is_not_that_of_an_entry(tmp_path):
    """A folder that an export without Triton has published into belongs to the user."""
    (tmp_path / "net" / "1").mkdir(parents=True)
    assert export_onnx(small(), tmp_path / "net" / "1" / "model.onnx", X)
    with pytest.raises(ArgumentError, match=r"\(1/model\.manifest\.json is of an export elsewhere\)"):
        check_entry(tmp_path, tmp_path / "net.onnx", ("cpu",))


@pytest.mark.parametrize(
    ("repository", "file", "providers", "error", "message"),
    [
        ("no/models", "net.onnx", ("cpu",), ArgumentError, "a model repository is a folder, or a name in an existing"),
        ("taken", "net.onnx", ("cpu",), ArgumentError, "a model repository is a folder, or a name in an existing"),
        (3, "net.onnx", ("cpu",), TypeError, "triton must be a str or path, got int"),
        ("models", "my net.onnx", ("cpu",), ArgumentError, "hold letters, digits, _ . and -, got 'my net'"),
        ("models", "-net.onnx", ("cpu",), ArgumentError, "hold letters, digits, _ . and -, got '-net'"),
        ("models", "größe.onnx", ("cpu",), ArgumentError, "hold letters, digits, _ . and -, got 'größe'"),
        ("models", "net.onnx", ("other",), ArgumentError, "Triton runs a file on cpu or cuda, and it is verified on"),
    ],
)
def test_what_cannot_be_is_said_before_the_work(repository, file, providers, error, message, tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(error, match=message):
        check_entry(tmp_path / repository if isinstance(repository, str) else repository, tmp_path / file, providers)
    assert os.listdir(tmp_path) == ["taken"]


def test_what_takes_the_place_during_the_work_is_not_replaced(tmp_path):
    def take(what, done, total):
        if "verify" in what:
            (tmp_path / "models" / "net").mkdir(parents=True, exist_ok=True)
            (tmp_path / "models" / "net" / "config.pbtxt").write_text("of somebody else")

    with pytest.raises(ArgumentError, match="no export wrote what lies there"):
        export_onnx(small(), tmp_path / "net.onnx", X, triton=tmp_path / "models", progress=take)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["config.pbtxt", "models", "net"]


class MonteCarlo(nn.Module):
    def __init__(self):
        super().__init__()
        self.noise = nn.Dropout(0.5)
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        return self.head(nn.functional.dropout(x, 0.5, training=True))


def test_a_file_that_is_random_on_purpose_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match="Triton cannot serve a file that is random on purpose: it optimizes") as e:
        export_onnx(MonteCarlo(), tmp_path / "net.onnx", X, allow="", triton=tmp_path / "models")
    assert "leave triton (--triton) out" in str(e.value)
    assert os.listdir(tmp_path) == []


def test_the_copies_are_as_private_as_the_file(tmp_path):
    publish(tmp_path, 0)
    assert model_of(tmp_path / "models" / "net").stat().st_mode & 0o777 == 0o666 & ~current_umask()
    (tmp_path / "net.onnx").chmod(0o600)
    publish(tmp_path, 1)
    files = [path for path in (tmp_path / "models").rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_the_repository_may_be_where_the_file_is(tmp_path):
    assert export_onnx(small(), tmp_path / "net.onnx", X, triton=tmp_path, golden=tmp_path)
    names = ["net", "net.manifest.json", "net.onnx", "test_data_set_0"]
    assert sorted(os.listdir(tmp_path)) == names


def test_killed_at_any_moment_an_entry_is_whole_or_away(entry, tmp_path):
    """And nothing that Triton would take for a model is left in the repository."""
    outcomes, number = [], 0
    while True:
        left = [number]

        def kill(event, arguments):
            if event == "os.rename":
                left[0] -= 1  # noqa: B023 the fork has its own
                if left[0] < 0:  # noqa: B023
                    os.kill(os.getpid(), 9)

        def forked():
            sys.addaudithook(kill)
            publish(tmp_path, 1)

        killed = in_fork(forked)
        outcomes.append(state(entry))
        assert [path.name for path in entry.parent.iterdir() if path.is_dir()] in ([], ["net"])
        if killed == 0:
            break
        publish(tmp_path, 0)
        assert state(entry) == "0"
        number += 1
    assert set(outcomes) <= {"0", "1", "away"}
    assert outcomes[0] == "0"
    assert outcomes[-1] == "1"
    assert len(outcomes) > 5
    assert not any(path.name.startswith(".") for path in tmp_path.iterdir())


def test_what_the_test_above_looks_for_it_finds(entry):
    (entry / "1" / "model.onnx").write_bytes(parsed("g (float[1] x) => (float[1] y) {y = Relu(x)}").SerializeToString())
    assert state(entry) == "model.onnx is not the file that was proven (its sha256 differs)"
    (entry / "1" / "model.manifest.json").unlink()
    assert state(entry) == "mixed"


def test_two_exports_into_one_repository_wait_for_each_other(tmp_path):
    children = []
    for seed in range(3):
        folder = tmp_path / str(seed)
        folder.mkdir()
        (folder / "models").symlink_to(tmp_path / "models")
        (tmp_path / "models").mkdir(exist_ok=True)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                for _ in range(10):
                    publish(folder, seed)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert state(tmp_path / "models" / "net") in {"0", "1", "2"}
    assert codes == [0, 0, 0]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root may mount")
def test_a_repository_that_is_a_file_system_of_its_own(tmp_path):
    models = tmp_path / "models"
    models.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", models], capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"nothing can be mounted here: {mounted.stderr.strip()}")
    try:
        for seed in (0, 1):
            publish(tmp_path, seed)
            assert state(models / "net") == str(seed)
        assert os.listdir(models) == ["net"]
    finally:
        subprocess.run(["umount", models], check=True)


def test_the_golden_data_of_the_export_is_that_of_the_entry(tmp_path):
    """So that a replay of what is served takes it."""
    assert export_onnx(small(), tmp_path / "net.onnx", X, triton=tmp_path, golden=tmp_path)
    manifests = [read_manifest(path) for path in tmp_path.rglob("*.manifest.json")]
    assert len(manifests) == 2
    assert manifests[0].golden == manifests[1].golden
    assert set(manifests[0].golden) == {"input_0.pb", "output_0.pb"}


def test_the_manifest_of_an_entry_names_its_configuration(entry):
    document = json.loads((entry / "1" / "model.manifest.json").read_text())
    assert document["config"] == sha256_of(entry / "config.pbtxt")
    assert document["model"] == sha256_of(entry / "1" / "model.onnx")
