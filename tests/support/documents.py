"""Reports of every kind, and what a reader sees of them."""

import html
import io
import re
from html.parser import HTMLParser

from rich.console import Console

from jumpout_export.render import render_terminal
from jumpout_export.report import (
    BatchNormLayer,
    BatchNormReport,
    Check,
    ExportReport,
    FoldedLayer,
    OutputEffect,
    PipelineReport,
    ProviderReport,
    TrainingHistory,
    VerifyReport,
)


def layer(name: str = "features.1", w: float = 0.2, verdict: str = "drift", **changes: object) -> BatchNormLayer:
    numbers = {"w": w, "w_low": 0.9 * w, "w_high": 1.1 * w, "delta": [w, -w], "log_ratio": [-w, w / 2]}
    return BatchNormLayer(name=name, verdict=verdict, channels=2, samples=100, **{**numbers, **changes})


def batchnorm(verdict: str = "drift", w: float = 0.2, **changes: object) -> BatchNormReport:
    layers = [layer("features.1", w / 20, "ok"), layer("features.5", w, verdict, note="served variance is 0.7 of it")]
    origin = "features.5" if verdict == "drift" else None
    return BatchNormReport(**{"verdict": verdict, "origin": origin, "samples": 1437, "layers": layers, **changes})


def check(name: str, verdict: str = "pass", measured: float | None = 2e-7, limit: float | None = 1e-5) -> Check:
    return Check(name=name, verdict=verdict, measured=measured, limit=limit, note=f"note of {verdict}")


def checks(fail: bool) -> list[Check]:
    passing = [check(f"cpu/{level}/batch={size}/worst error") for level in ("off", "all") for size in range(12)]
    bad = [check("cpu/all/batch=99/worst error", "fail", 3.25e-3)] if fail else []
    return [check("file/random nodes", measured=0, limit=0), *passing, *bad]


def export(fail: bool = False, **changes: object) -> ExportReport:
    cpu = ProviderReport(verdict="fail" if fail else "pass", reason="one check failed" if fail else "")
    values = {
        "passed": not fail,
        "providers": {"cpu": cpu, "cuda": ProviderReport(verdict="not_run", reason="libcudnn.so.9 is missing")},
        "checks": checks(fail),
        "first_divergence": "features.8" if fail else None,
        "path": "runs/demo/model.onnx",
        "sha256": "ab" * 32,
        "opset": 20,
        "folded": [FoldedLayer(path="features.3", kind="Jumpout", action="relu", settings="sigma=0.1")],
        "provenance": {"torch": "2.13.0"},
        "notes": ["left in train mode: features"],
    }
    return ExportReport(**{**values, **changes})


def pipeline(fail: bool = False) -> PipelineReport:
    history = TrainingHistory(
        loss=[2.0, 1.0, 0.5],
        train_accuracy=[0.3, 0.6, 0.9],
        test_accuracy=[0.4, 0.7, 0.975],
        serving_accuracy=[0.8, 0.9, 0.98],
        active_fraction={"features.3": [0.5, 0.4, 0.45], "features.7": [0.6, 0.5, 0.4]},
        rate={"features.3": [0.1, 0.2, 0.2], "features.7": [0.1, 0.1, 0.3]},
    )
    effect = OutputEffect(
        samples=360, logit_shift=0.2, kl=0.03, flip_rate=0.02, top1_before=0.9, top1_after=0.95,
        nll_before=0.2, nll_after=0.3, ece_before=0.02, ece_after=0.02,
    )  # fmt: skip
    return PipelineReport(
        title="demo: digits",
        training=history,
        before=batchnorm(outputs=effect),
        after=batchnorm("drift" if fail else "ok", 0.1 if fail else 1e-6),
        export=export(fail),
        environment={"python": "3.11"},
        notes=["one seed"],
    )


REPORTS = {
    "batchnorm ok": (batchnorm("ok", 0.01), "PASS"),
    "batchnorm drift": (batchnorm(), "FAIL"),
    "batchnorm inconclusive": (batchnorm("inconclusive", 0.05), "INCONCLUSIVE"),
    "batchnorm empty": (BatchNormReport(verdict="ok", samples=0), "NOT RUN"),
    "verify": (VerifyReport(passed=True, checks=[check("cpu/all/x")]), "PASS"),
    "verify empty": (VerifyReport(passed=False), "FAIL"),
    "inspect": (VerifyReport(kind="inspect", passed=False, checks=[check("file/x", "fail", 2, 0)]), "FAIL"),
    "export": (export(batchnorm=batchnorm("ok", 0.01)), "PASS"),
    "export fail": (export(fail=True), "FAIL"),
    "pipeline": (pipeline(), "PASS"),
    "pipeline fail": (pipeline(fail=True), "FAIL"),
    "pipeline empty": (PipelineReport(training=TrainingHistory()), "NOT RUN"),
}


def terminal(report: object, width: int = 80, encoding: str = "utf-8") -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")
    render_terminal(report, Console(file=file, width=width, color_system=None, legacy_windows=False))
    file.flush()
    return file.buffer.getvalue().decode(encoding)


def words(text: str) -> str:
    """Returns `text` without what wraps or marks it up, so that a sentence can be looked for."""
    return " ".join(html.unescape(re.sub(r"</?[a-z][^>]*>|[`\\*]", "", text)).split())


class Tags(HTMLParser):
    """What a browser would see as elements, attributes and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data
