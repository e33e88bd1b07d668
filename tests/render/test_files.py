"""`write_report` leaves whole files, and no page that belongs to another report."""

import builtins
import json
import stat
from pathlib import Path

import pytest

from jumpout_export.render import render_html, render_markdown, write_report
from jumpout_export.render.writers import files
from jumpout_export.report import BatchNormLayer, BatchNormReport, Check, ExportReport, PipelineReport, TrainingHistory


def report(w: float = 0.3) -> PipelineReport:
    row = BatchNormLayer(name="bn", verdict="drift", w=w, w_low=w, w_high=w, delta=[w], log_ratio=[w])
    check = BatchNormReport(verdict="drift", origin="bn", samples=5, layers=[row])
    return PipelineReport(training=TrainingHistory(loss=[1.0, 0.5]), before=check)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_writes_json_page_and_plots_and_says_so(tmp_path):
    written = write_report(report(), tmp_path / "new" / "folder")
    assert set(written) == {
        "report.json",
        "report.md",
        "report.html",
        "plot-loss.svg",
        "plot-drift.svg",
        "plot-channels-1.svg",
    }
    assert names(tmp_path / "new" / "folder") == set(written)
    assert PipelineReport.model_validate_json(written["report.json"].read_text()) == report()
    assert written["report.html"].read_text(encoding="utf-8") == render_html(report())
    assert written["report.md"].read_text(encoding="utf-8") == render_markdown(report())
    assert written["plot-drift.svg"].read_text().startswith("<?xml")
    # Others may read it: no temporary file's private mode.
    assert stat.S_IMODE(written["report.json"].stat().st_mode) & stat.S_IRUSR


def test_writing_twice_gives_the_same_bytes(tmp_path):
    first = write_report(report(), tmp_path / "a")
    second = write_report(report(), tmp_path / "b")
    assert {n: p.read_bytes() for n, p in first.items()} == {n: p.read_bytes() for n, p in second.items()}


def test_plots_of_an_older_report_are_removed_and_other_files_are_not(tmp_path):
    write_report(report(), tmp_path)
    (tmp_path / "plot-mine.svg").write_text("mine")
    written = write_report(BatchNormReport(verdict="ok", samples=0), tmp_path)
    assert names(tmp_path) == {*written, "plot-mine.svg"}
    assert set(written) == {"report.json", "report.md", "report.html"}


@pytest.mark.parametrize("missing", ["jinja2", "matplotlib"])
def test_a_missing_extra_is_named_and_the_json_is_there(tmp_path, monkeypatch, missing):
    write_report(report(), tmp_path)
    original = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == missing:
            raise ImportError(f"No module named {name!r}")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=rf"need {missing}.*pip install 'jumpout-export\[report\]'"):
        write_report(report(0.4), tmp_path)
    # The older page would now stand beside JSON that says something else.
    assert names(tmp_path) == {"report.json", "report.md"}
    assert json.loads((tmp_path / "report.json").read_text())["before"]["layers"][0]["w"] == 0.4


def test_a_disk_that_is_full_half_way_leaves_no_file_of_another_report(tmp_path, monkeypatch):
    write_report(report(), tmp_path)
    write = files._write

    def full_disk(path, text):
        if path.suffix == ".html":
            raise OSError("No space left on device")
        return write(path, text)

    monkeypatch.setattr(files, "_write", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_report(report(0.4), tmp_path)
    assert names(tmp_path) == {"report.json", "report.md"}
    assert json.loads((tmp_path / "report.json").read_text())["before"]["layers"][0]["w"] == 0.4


def test_an_exception_leaves_no_half_file(tmp_path, monkeypatch):
    write_report(report(), tmp_path)
    before = (tmp_path / "report.json").read_bytes()

    def full_disk(_):
        raise OSError("No space left on device")

    monkeypatch.setattr(files.os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_report(report(0.4), tmp_path)
    assert (tmp_path / "report.json").read_bytes() == before
    assert not [name for name in names(tmp_path) if name.endswith(".tmp")]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "taken").write_text("x")
    with pytest.raises(
        NotADirectoryError, match=r"the report needs a folder, but .*taken is a file; name another folder"
    ):
        write_report(report(), tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "x"


@pytest.mark.integration
def test_the_list_of_plots_is_complete(tmp_path):
    # A plot missing in it would outlive its report.
    full = report()
    accuracy = {"train_accuracy": [0.5, 0.9], "active_fraction": {"j": [0.5, 0.4]}, "rate": {"j": [0.1, 0.2]}}
    full.training = TrainingHistory(loss=[1.0, 0.5], **accuracy)
    parts = {"stale": 0.1, "stochastic": 0.1, "propagated": 0.1, "median_log_ratio": 0.3}
    full.before.layers = [full.before.layers[0].model_copy(update={"name": f"bn{i}", **parts}) for i in range(20)]
    full.after = full.before.model_copy(deep=True)
    checks = [Check(name=f"cpu/all/{i}", measured=1, limit=2, verdict="pass") for i in range(3)]
    full.export = ExportReport(passed=True, checks=checks)
    assert {name for name in write_report(full, tmp_path) if name.endswith(".svg")} == {
        f"plot-{name}.svg" for name in files._PLOTS
    }


def test_notes_come_before_versions_which_come_last_on_the_page(tmp_path):
    facts = {"jumpout_export.torch": "2.0", "other": "kept"}
    verified = ExportReport(
        passed=False, notes=["what failed"], provenance=facts, environment={"command": "jumpout-export export"}
    )
    text = write_report(verified, tmp_path)["report.md"].read_text(encoding="utf-8")
    titles = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert titles[-3:] == ["Notes", "Provenance", "Environment"]
    assert "| torch | 2.0 |" in text
    assert "| other | kept |" in text
    assert "| command | jumpout-export export |" in text
