"""The sections about the run itself: training, environment, notes."""

from __future__ import annotations

from functools import partial

from jumpout_export.render.blocks import Block, Cell, Column, Items, Plot, Plots, Section, Table
from jumpout_export.render.headline import is_published
from jumpout_export.render.numbers import number, percent
from jumpout_export.render.plots import run as plots
from jumpout_export.report import BatchNormReport, BatchNormSetsReport, ExportReport, Report, TrainingHistory
from jumpout_export.text import count

_SERVING = (
    " With serving statistics the BatchNorms hold what the network without noise saw in the last batches: where the "
    "two test curves differ, the running statistics hide what the network can do."
)


def training_section(history: TrainingHistory | None) -> list[Section]:
    """Returns accuracy, loss and the active fraction per jumpout layer over training; nothing without a history."""
    if history is None:
        return []
    accuracies = {
        "train, noise on": history.train_accuracy,
        "test, noise off": history.test_accuracy,
        "test, serving statistics": history.serving_accuracy,
    }
    accuracies = {name: values for name, values in accuracies.items() if values}
    figures = []
    if accuracies:
        draw = partial(plots.lines, "accuracy", accuracies, "accuracy")
        figures.append(Plot("accuracy", "Accuracy", "Higher is better.", draw))
    if history.loss:
        draw = partial(plots.lines, "loss", {"training loss": history.loss}, "loss, nats")
        figures.append(Plot("loss", "Training loss", "Mean over the epoch, with the noise on.", draw))
    if history.active_fraction:
        caption = (
            "q, the share of a layer's units above zero, one line per layer (Wang et al. 2019, Fig. 1). Jumpout "
            "divides its rate by q, so layers on different heights get different rates; a line near 0 is a dying layer."
        )
        draw = partial(plots.lines, "active", history.active_fraction, "active fraction q")
        figures.append(Plot("active", "Active fraction per layer", caption, draw))
    if history.rate:
        caption = "p', the rate that was applied after dividing by q, averaged over the epoch."
        draw = partial(plots.lines, "rate", history.rate, "rate p'")
        figures.append(Plot("rate", "Effective rate per layer", caption, draw))
    blocks: list[Block] = [Plots(tuple(figures))] if figures else []
    blocks += _tables(history, accuracies)
    epochs = max(map(len, [*accuracies.values(), history.loss, *history.active_fraction.values()]), default=0)
    return [
        Section(
            "training",
            "Training",
            f"{count(epochs, 'epoch')} with jumpout on; the accuracy on test samples is taken in "
            "eval mode, with jumpout off.",
            "The training accuracy is measured with the noise on, so it may well lie below the test accuracy."
            + (_SERVING if history.serving_accuracy else ""),
            tuple(blocks),
            settled="; ".join(
                [count(epochs, "epoch"), *(f"{name} {percent(values[-1])}" for name, values in accuracies.items())]
            ),
        )
    ]


def environment_section(values: dict[str, str]) -> list[Section]:
    """Returns command, versions and machine; nothing if they are not known."""
    return _names("environment", "Environment", "What this was made with.", values)


def provenance_section(report: ExportReport) -> list[Section]:
    """Returns what the file's metadata says, or would have said; nothing if there is none."""
    lead = "What the file's own metadata says."
    if not is_published(report):
        lead = "What the metadata of the file would say; it was not published."
    return _names("provenance", "Provenance", lead, report.provenance)


def notes_section(report: Report) -> list[Section]:
    """Returns the notes of a pipeline or verification; a BatchNorm report carries its own beside its layers."""
    if isinstance(report, BatchNormReport | BatchNormSetsReport) or not report.notes:
        return []
    return [Section("notes", "Notes", "", "", (Items(tuple(report.notes)),))]


def _tables(history: TrainingHistory, accuracies: dict[str, list[float]]) -> list[Block]:
    columns = (Column("quantity", "note"), Column("first epoch", "number"), Column("last epoch", "number"))
    rows = [(Cell(f"accuracy, {name}"), Cell(percent(v[0])), Cell(percent(v[-1]))) for name, v in accuracies.items()]
    if history.loss:
        rows.append((Cell("training loss, nats"), Cell(number(history.loss[0])), Cell(number(history.loss[-1]))))
    blocks: list[Block] = [Table(columns, tuple(rows))] if rows else []
    layer_columns = [Column("layer", "path"), Column("q, first epoch", "number"), Column("q, last epoch", "number")]
    layer_columns += [Column("p', last epoch", "number")] if history.rate else []
    layers = []
    for name in dict.fromkeys([*history.active_fraction, *history.rate]):
        q: list[float | None] = [*history.active_fraction.get(name, [])] or [None]
        rate: list[float | None] = [*history.rate.get(name, [])] or [None]
        row = (Cell(name), Cell(number(q[0])), Cell(number(q[-1])))
        layers.append((*row, Cell(number(rate[-1]))) if history.rate else row)
    if layers:
        blocks.append(Table(tuple(layer_columns), tuple(layers)))
    return blocks


def _names(key: str, title: str, lead: str, values: dict[str, str]) -> list[Section]:
    if not values:
        return []
    # The file's metadata has the package's name before each of ours.
    rows = tuple((Cell(name.removeprefix("jumpout_export.")), Cell(value)) for name, value in values.items())
    table = Table((Column("name"), Column("value", "note")), rows)
    return [Section(key, title, lead, "", (table,), background=True, settled=count(len(rows), "line"))]
