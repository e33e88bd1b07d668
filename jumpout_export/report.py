"""The reports: what was checked, what was measured, against which limit, and the verdict.

All are pydantic models: `report.model_dump_json()` is what `--json` prints and `report.json` holds; the JSON Schema is
in `docs/`. A report is truthy exactly when it passed; `passes` is the one rule by which checks make a report pass.

Over 300 lines because it is the one schema of all commands, and two thirds are what each field means and its unit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from jumpout_export.display import Displayed, OneLine
from jumpout_export.text import count, joined

BatchNormVerdict = Literal["ok", "drift", "inconclusive"]
CheckVerdict = Literal["pass", "warning", "fail", "not_run"]
ProviderVerdict = Literal["pass", "fail", "not_run"]
OutputVerdict = Literal["ok", "fails", "inconclusive"]
Cause = Literal["stale", "stochastic", "propagated", "data"]

# Of the JSON of all reports: rises when a reader of the one before cannot take what is written now. 1 had no number;
# 2 has it, the verdict `warning` and `required`.
SCHEMA_VERSION: Literal[2] = 2


def _float(value: object) -> object:
    """JSON has no NaN; a report writes it as the string "NaN" and must read it back."""
    return float(value) if isinstance(value, str) else value


# Strict JSON has no NaN and no infinity; pydantic writes them as strings so that every JSON reader can read a report,
# and the schema says so.
Number = Annotated[
    float,
    BeforeValidator(_float),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"enum": ["NaN", "Infinity", "-Infinity"]}]}),
]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")


class Check(_Model):
    """One thing that was checked: what was measured, what is allowed, and the verdict.

    Attributes:
        name: for example `cpu/all/batch=7/worst error`.
        measured: the measured value in the unit the note names; None where the check is not a number.
        limit: the largest allowed value, in the same unit.
        verdict: `pass`; `warning`, something to know that does not make the file a wrong one; `fail`; or `not_run` (the
            note says why).
        required: whether a report cannot pass if this was not run; it means nothing for another verdict.
        note: one sentence for a person.
    """

    name: str
    measured: Number | None = None
    limit: Number | None = None
    verdict: CheckVerdict
    required: bool = True
    note: str = ""

    @property
    def blocks(self) -> bool:
        """Whether the report that it is in cannot pass: it failed, or was not run and is required."""
        return self.verdict == "fail" or (self.verdict == "not_run" and self.required)


class ProviderReport(_Model):
    """The verdict for one ONNX Runtime execution provider; `reason` says why it failed or was not run."""

    verdict: ProviderVerdict
    reason: str = ""


class FoldedLayer(_Model):
    """What the fold made of a stochastic layer.

    Attributes:
        path: module path, for example `features.3`.
        kind: class name, for example `Jumpout`.
        action: `identity`, `relu` (a fused ReLU stays) or what else it became; `keep` where it stays, its noise off.
        settings: the layer's settings as `name=value`, for the file's provenance.
    """

    path: str
    kind: str
    action: str
    settings: str = ""


class Attribution(OneLine, _Model):
    """Per channel, where a layer's drift comes from: in every list pair the parts add up to the whole exactly.

    With T the training state (noise on, batch statistics), P the same with the noise off, E the serving state and R the
    stored statistics: ln(E / R) = ln(T / R) [stale] + ln(P / T) [stochastic] + ln(E / P) [propagated], and the same
    for the means in units of tau. With a reference, T, P and E are those of its samples, and the step from its E to
    that of the samples that are checked is a fourth part, data. All lists are (C,).

    Attributes:
        log_ratio_stale: ln(T / R): lag of the moving average, augmentation.
        log_ratio_stochastic: ln(P / T): dropout or jumpout being off.
        log_ratio_propagated: ln(E / P): the stored statistics of BatchNorms upstream.
        delta_stale: the same for the mean, in units of tau.
        delta_stochastic: the same.
        delta_propagated: the same.
        log_ratio_data: ln of the variance of the samples that are checked over that of the reference's; empty without
            a reference, as the next.
        delta_data: the same for the mean.
    """

    log_ratio_stale: list[Number]
    log_ratio_stochastic: list[Number]
    log_ratio_propagated: list[Number]
    delta_stale: list[Number]
    delta_stochastic: list[Number]
    delta_propagated: list[Number]
    log_ratio_data: list[Number] = Field(default_factory=list)
    delta_data: list[Number] = Field(default_factory=list)

    def _line(self) -> str:
        return count(len(self.log_ratio_stale), "channel")


class AlphaAdvice(_Model):
    """What the law of the scaled mask says about the jumpout or dropout layer whose output a BatchNorm's layer reads.

    For y = sum_i w_i x_i z_i s with keep rate k = 1 - p' and s = k^-alpha the variance ratio train / eval is
    k^(2 - 2 alpha) (1 + (p' / k) rho), rho = sum_i w_i^2 E[x_i^2] / Var(sum_i w_i x_i).

    Attributes:
        path: module path of the stochastic layer.
        alpha: the exponent it uses; 1 for plain dropout.
        rho: the median over channels of rho.
        alpha_star: the exponent that would have kept the variance (median channel).
        predicted: what the law says ln(P / T) is (median channel); compare with `stochastic`.
    """

    path: str
    alpha: Number
    rho: Number
    alpha_star: Number
    predicted: Number


class BatchNormCall(_Model):
    """One of several calls of the same BatchNorm in one forward, against the statistics that all calls share.

    Attributes:
        w: RMS over channels of W for this call alone.
        median_log_ratio: median over channels of ln r.
        delta_rms: RMS over channels of delta.
    """

    w: Number
    median_log_ratio: Number
    delta_rms: Number


class BatchNormLayer(OneLine, _Model):
    """How far one BatchNorm layer's stored statistics are from what serving sees (states R and E).

    Per-channel lists, (C,), have one number per channel, or per channel of `listed` where a model has very many. Units:
    `delta` and `w` are in stored standard deviations tau = sqrt(running_var + eps); `log_ratio` is ln of the serving
    variance over the stored one.

    Attributes:
        name: module path.
        kind: class name.
        channels: number of channels C.
        samples: samples that reached the layer.
        verdict: `ok` (upper bound below the margin), `drift` (lower bound above it, or a channel beyond the margin of
            severe drift by itself), else `inconclusive`.
        w: debiased RMS over channels of sqrt(delta^2 + (sqrt(r) - 1)^2), a 2-Wasserstein distance.
        w_low: lower end of its 95% interval.
        w_high: upper end of its 95% interval.
        w_measured: w before what noise adds is taken off.
        w_noise: what noise alone makes of w, that of the samples and that of the stored average.
        drifting_channels: channels whose own W is shown to be above the margin of severe drift, the farthest first
            (Holm's correction over all channels of the model); one of them makes the layer drift, whatever its w.
        cause: what makes it drift, or None.
        listed: indices of the channels that the per-channel lists are of, ascending, or None for all. Of a model with
            more than 20,000 channels every layer lists its share of as many, evenly spaced in the order of W.
        delta: (C,) (m - mu) / tau.
        log_ratio: (C,) ln((v + eps) / (running_var + eps)).
        delta_se: (C,) standard error of delta, from samples as the unit.
        log_ratio_se: (C,) standard error of log_ratio.
        median_log_ratio: median over channels of log_ratio.
        delta_p95: 95th percentile over channels of |delta|.
        symmetric_kl: mean over channels of the symmetric Kullback-Leibler divergence of the two normals, in nats.
        max_ratio: median over channels of max(r, 1 / r), the ratio of Li et al. (CVPR 2019).
        stale: part of the median log ratio made by stale buffers; all parts add up to it.
        stochastic: part of it made by dropout or jumpout being off.
        propagated: part of it made by BatchNorms upstream.
        data: part of it made by samples that are others than the reference's; None without a reference.
        part_intervals: by part, the 95% sampling interval.
        w_data: debiased W between the samples that are checked and the reference's, as this layer sees them, in units
            of the stored tau; None without a reference.
        w_data_low: lower end of its 95% interval.
        w_data_high: upper end of it.
        attribution: the parts per channel, or None where only the serving state was measured.
        advice: what the law of the scaled mask says, where a jumpout or dropout layer feeds this one directly.
        worst_channel: index of the channel with the largest W.
        flagged: channels that differ significantly, at a false discovery rate of 5% (Benjamini & Hochberg 1995).
        samples_needed: about how many samples in all would decide an undecided layer; None where unknown.
        calls: one entry per call where the layer is called several times in one forward.
        note: one sentence for a person: what, how much, why, what to do.
    """

    name: str
    kind: str = "BatchNorm2d"
    channels: int = 0
    samples: int = 0
    verdict: BatchNormVerdict
    w: Number
    w_low: Number
    w_high: Number
    w_measured: Number | None = None
    w_noise: Number | None = None
    drifting_channels: list[int] = Field(default_factory=list)
    cause: Cause | None = None
    listed: list[int] | None = None
    delta: list[Number] = Field(default_factory=list)
    log_ratio: list[Number] = Field(default_factory=list)
    delta_se: list[Number] = Field(default_factory=list)
    log_ratio_se: list[Number] = Field(default_factory=list)
    median_log_ratio: Number | None = None
    delta_p95: Number | None = None
    symmetric_kl: Number | None = None
    max_ratio: Number | None = None
    stale: Number | None = None
    stochastic: Number | None = None
    propagated: Number | None = None
    data: Number | None = None
    part_intervals: dict[Cause, list[Number]] = Field(default_factory=dict)
    w_data: Number | None = None
    w_data_low: Number | None = None
    w_data_high: Number | None = None
    attribution: Attribution | None = None
    advice: AlphaAdvice | None = None
    worst_channel: int | None = None
    flagged: list[int] = Field(default_factory=list)
    samples_needed: int | None = None
    calls: list[BatchNormCall] = Field(default_factory=list)
    note: str = ""

    @property
    def indices(self) -> Sequence[int]:
        """Indices of the channels that the per-channel lists are of, in their order."""
        return range(len(self.delta)) if self.listed is None else self.listed

    def _line(self) -> str:
        cause = "" if self.cause is None else f", {self.cause}"
        return f"{self.name} {self.verdict}, W {self.w:.3f}, 95% {self.w_low:.3f} to {self.w_high:.3f}{cause}"


class OutputEffect(_Model):
    """What recalibrating changes at the outputs: deployed model (before) against a recalibrated copy (after).

    Of a quantized file, before is the model and after the file.

    Attributes:
        samples: samples compared.
        logit_shift: RMS change of the outputs over their standard deviation.
        kl: mean Kullback-Leibler divergence of the softmax, before against after, in nats.
        flip_rate: fraction of samples whose arg max changes.
        top1_before: top-1 accuracy in [0, 1]; None without labels, as all below.
        top1_after: the same after recalibration.
        nll_before: mean negative log likelihood in nats.
        nll_after: the same after recalibration.
        ece_before: expected calibration error, 15 equal bins, in [0, 1].
        ece_after: the same after recalibration.
        ece_change_low: lower end of the 95% interval of its change; None for fewer than two samples.
        ece_change_high: upper end.
        nll_change_low: lower end of the 95% interval of nll_after - nll_before, samples as the unit.
        nll_change_high: upper end of it.
        labelled: samples with a label.
        top1_change_low: lower end of the 95% interval of top1_after - top1_before.
        top1_change_high: upper end of it.
        mcnemar_p: two-sided p-value of the exact McNemar test that recalibration leaves top-1 accuracy alone.
    """

    samples: int
    logit_shift: Number
    kl: Number | None = None
    flip_rate: Number | None = None
    top1_before: Number | None = None
    top1_after: Number | None = None
    nll_before: Number | None = None
    nll_after: Number | None = None
    ece_before: Number | None = None
    ece_after: Number | None = None
    nll_change_low: Number | None = None
    nll_change_high: Number | None = None
    labelled: int = 0
    ece_change_low: Number | None = None
    ece_change_high: Number | None = None
    top1_change_low: Number | None = None
    top1_change_high: Number | None = None
    mcnemar_p: Number | None = None


class BatchNormReport(Displayed, _Model):
    """The result of `check_batchnorm`; truthy exactly when the verdict is `ok`.

    Attributes:
        kind: always `batchnorm`.
        schema_version: of this JSON.
        verdict: `drift` if any layer drifts, `ok` if all are ok, else `inconclusive`.
        origin: module path of the first drifting layer in call order, or None.
        samples: samples seen.
        groups: groups of samples that belong together, 0 where samples are the unit.
        reference_samples: samples of the reference, 0 without one.
        warn: margin that decides the verdict, in units of W.
        fail: margin from which the drift is called severe, in units of W.
        stopped_early: every layer was decided before all samples asked for were seen.
        ranks: processes the samples were spread over.
        layers: the layers in call order.
        outputs: the effect on the outputs, or None where it was not measured.
        not_observed: BatchNorm layers that were not measured: the forward pass did not reach them, or what they
            normalise could not be told; the notes say which.
        notes: sentences for a person, one fact each.
    """

    kind: Literal["batchnorm"] = "batchnorm"
    schema_version: Literal[2] = SCHEMA_VERSION
    verdict: BatchNormVerdict
    origin: str | None = None
    samples: int
    groups: int = 0
    reference_samples: int = 0
    warn: Number = 0.05
    fail: Number = 0.15
    stopped_early: bool = False
    ranks: int = 1
    layers: list[BatchNormLayer] = Field(default_factory=list)
    outputs: OutputEffect | None = None
    not_observed: list[str] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)

    def __bool__(self) -> bool:
        return self.verdict == "ok"

    def _line(self) -> str:
        where = "" if self.origin is None else f", drift starts at {self.origin}"
        return f"{self.verdict}, {count(len(self.layers), 'layer')}, {count(self.samples, 'sample')}{where}"


class BatchNormSetsReport(Displayed, _Model):
    """The same model checked on several sets of samples; truthy exactly when the verdict on every one is `ok`.

    Attributes:
        kind: always `batchnorm_sets`.
        schema_version: of this JSON.
        sets: the check of each set by its name, in the order they were given.
    """

    kind: Literal["batchnorm_sets"] = "batchnorm_sets"
    schema_version: Literal[2] = SCHEMA_VERSION
    sets: dict[str, BatchNormReport] = Field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.verdict == "ok"

    def _line(self) -> str:
        return f"{self.verdict}, {count(len(self.sets), 'set')} of samples"

    @property
    def verdict(self) -> BatchNormVerdict:
        """`drift` if the model drifts on any set, `ok` if it is ok on all, else `inconclusive`."""
        verdicts = {check.verdict for check in self.sets.values()}
        if "drift" in verdicts:
            return "drift"
        return "ok" if verdicts == {"ok"} else "inconclusive"


class QuantizedTensor(OneLine, _Model):
    """What rounding does to one tensor of a quantized file.

    Attributes:
        name: of what is rounded, in the file.
        kind: `activation`, `weight` (any constant that is rounded) or `output` of the network.
        layer: module path of the layer that makes it, or that a weight belongs to; a node where that is not known.
        integers: that its values are rounded to, for example `uint8`; empty for an output.
        scale: the largest scale.
        scales: number of scales: 1, or one per channel or block.
        clipped: share of its values beyond the range of the integers, of an activation by more than a twentieth of it.
        sqnr: signal to quantization noise in dB against the network without rounding; None where it was not measured.
        fall: by how many dB that is below the worst rounded tensor that it is made of; None for what is made of none.
    """

    name: str
    kind: Literal["activation", "weight", "output"]
    layer: str = ""
    integers: str = ""
    scale: Number | None = None
    scales: int = 0
    clipped: Number | None = None
    sqnr: Number | None = None
    fall: Number | None = None

    def _line(self) -> str:
        sqnr = "" if self.sqnr is None else f", {self.sqnr:.1f} dB"
        clipped = "" if self.clipped is None else f", {self.clipped:.2%} clipped"
        return f"{self.kind} {self.name}{sqnr}{clipped}"


class QuantizedOutputs(_Model):
    """What a quantized file makes of the model's outputs on one provider and level.

    Attributes:
        effect: on the first output, samples as the unit; None where it was not measured.
        sqnr: signal to quantization noise of the worst output in dB, against PyTorch.
        top1: whether top-1 accuracy falls by no more than the margin: `ok` if the whole 95% interval of its change
            does, `fails` if none of it does, else `inconclusive`; None where it was not asked for.
        nll: the same of the rise of the mean negative log likelihood.
        samples_needed: about how many labelled samples would decide what is inconclusive; None where unknown.
    """

    effect: OutputEffect | None = None
    sqnr: Number | None = None
    top1: OutputVerdict | None = None
    nll: OutputVerdict | None = None
    samples_needed: int | None = None


class Quantization(OneLine, _Model):
    """What the rounding of a quantized file costs.

    Attributes:
        samples: on which the tensors were looked at.
        min_sqnr: the limit on signal to quantization noise of a tensor or output, in dB.
        max_clipped: the limit on the clipped share of a tensor.
        top1_margin: the largest fall of top-1 accuracy, in [0, 1]; None where accuracy was not asked for.
        nll_margin: the largest rise of the negative log likelihood, in nats; None as before.
        worst_layer: the layer at which signal to noise falls most, relative to what it reads; None where none does.
        tensors: every tensor that is rounded, in the order of the file, and every output.
        outputs: by provider and level, for example `cpu/all`.
    """

    samples: int = 0
    min_sqnr: Number
    max_clipped: Number
    top1_margin: Number | None = None
    nll_margin: Number | None = None
    worst_layer: str | None = None
    tensors: list[QuantizedTensor] = Field(default_factory=list)
    outputs: dict[str, QuantizedOutputs] = Field(default_factory=dict)

    def _line(self) -> str:
        return f"{count(len(self.tensors), 'tensor')}, falls most at {self.worst_layer}"


class VerifyReport(Displayed, _Model):
    """The result of `verify_onnx` and of `inspect`; truthy exactly when it passed.

    Attributes:
        kind: `verify`, `inspect`, `export` or `fold`.
        schema_version: of this JSON.
        passed: no check failed, none that is required was not run, and every provider asked for passed (`passes`).
        providers: verdict per provider (`cpu`, `cuda`); empty where only the file was inspected.
        checks: every check with measured value, limit and verdict.
        first_divergence: module path of the first layer that differs, or None.
        path: the ONNX file.
        sha256: of the ONNX file, in hex; empty if there is none, or if it was not published.
        data_files: files beside it that its weights lie in, name -> bytes; to be shipped with it.
        data_sha256: of these, in hex, as they were verified.
        against: the ONNX file that it was compared with; empty where that was a model.
        quantization: what its rounding costs, of a file that was judged as a quantized one; else None.
        notes: sentences for a person, one fact each.
        environment: the command with its settings, versions and machine, as name -> value; filled by the command line.
    """

    kind: Literal["verify", "inspect", "export", "fold"] = "verify"
    schema_version: Literal[2] = SCHEMA_VERSION
    passed: bool
    providers: dict[str, ProviderReport] = Field(default_factory=dict)
    checks: list[Check] = Field(default_factory=list)
    first_divergence: str | None = None
    path: str = ""
    sha256: str = ""
    data_files: dict[str, int] = Field(default_factory=dict)
    data_sha256: dict[str, str] = Field(default_factory=dict)
    against: str = ""
    quantization: Quantization | None = None
    notes: list[str] = Field(default_factory=list)
    environment: dict[str, str] = Field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.passed

    def _line(self) -> str:
        verdict = f"{self.kind} {'passed' if self.passed else 'not passed'}"
        good = sum(check.verdict == "pass" for check in self.checks)
        return f"{verdict}, {good} of {count(len(self.checks), 'check')}, {self.path or 'no file'}"


class ExportReport(VerifyReport):
    """The result of `export_onnx` and `fold_onnx`; truthy exactly when the file passed and was published.

    Attributes:
        kind: `export` or `fold`.
        folded: the stochastic layers that were folded away.
        opset: ONNX opset of the file, 0 if there is none.
        batchnorm: the BatchNorm report that belongs to the exported weights, where one was made.
        batchnorm_before: that of the weights before they were recalibrated, with what that changed at the outputs.
        provenance: what the file's metadata says: versions, settings, verdicts.
    """

    kind: Literal["verify", "inspect", "export", "fold"] = "export"
    folded: list[FoldedLayer] = Field(default_factory=list)
    opset: int = 0
    batchnorm: BatchNormReport | None = None
    batchnorm_before: BatchNormReport | None = None
    provenance: dict[str, str] = Field(default_factory=dict)


class TrainingHistory(OneLine, _Model):
    """What training left to look at, one entry per epoch.

    Attributes:
        loss: mean training loss, in nats.
        train_accuracy: with the noise of training on, in [0, 1].
        test_accuracy: in eval mode, in [0, 1].
        serving_accuracy: the same with serving statistics in the buffers (`ServingStatistics`).
        active_fraction: per jumpout layer, the mean fraction of active units q (Wang et al. 2019, Fig. 1).
        rate: per jumpout layer, the mean effective rate p'.
    """

    loss: list[Number] = Field(default_factory=list)
    train_accuracy: list[Number] = Field(default_factory=list)
    test_accuracy: list[Number] = Field(default_factory=list)
    serving_accuracy: list[Number] = Field(default_factory=list)
    active_fraction: dict[str, list[Number]] = Field(default_factory=dict)
    rate: dict[str, list[Number]] = Field(default_factory=dict)

    def _line(self) -> str:
        return count(len(self.loss), "epoch")


class MonitorHistory(Displayed, _Model):
    """What `BatchNormMonitor` saw of a training run; every list has one entry per look, every dict one list per layer.

    Attributes:
        kind: always `monitor`.
        steps: training step of each look.
        w: per BatchNorm layer, W of the stored statistics against what serving would see.
        w_low: lower ends of its 95% intervals.
        w_high: upper ends.
        w_serving: the same with the serving statistics in use, where the monitor was given them; NaN before their first
            step.
        w_serving_low: lower ends of its 95% intervals.
        w_serving_high: upper ends.
        active_fraction: per jumpout layer, q in the training state.
        rate: per jumpout layer, the mean effective rate p'; per nn.Dropout layer, its p.
        capped: per jumpout layer, the fraction of steps in which `rate_cap` bound.
    """

    kind: Literal["monitor"] = "monitor"
    steps: list[int] = Field(default_factory=list)
    w: dict[str, list[Number]] = Field(default_factory=dict)
    w_low: dict[str, list[Number]] = Field(default_factory=dict)
    w_high: dict[str, list[Number]] = Field(default_factory=dict)
    w_serving: dict[str, list[Number]] = Field(default_factory=dict)
    w_serving_low: dict[str, list[Number]] = Field(default_factory=dict)
    w_serving_high: dict[str, list[Number]] = Field(default_factory=dict)
    active_fraction: dict[str, list[Number]] = Field(default_factory=dict)
    rate: dict[str, list[Number]] = Field(default_factory=dict)
    capped: dict[str, list[Number]] = Field(default_factory=dict)

    def _line(self) -> str:
        last = f", the last at step {self.steps[-1]}" if self.steps else ""
        return f"{count(len(self.w), 'layer')}, {count(len(self.steps), 'look')}{last}"


class PipelineReport(Displayed, _Model):
    """The whole pipeline in one report; truthy when something was checked and all of it passed.

    Attributes:
        kind: always `pipeline`.
        schema_version: of this JSON.
        title: one line.
        training: the history, where the run trained.
        before: the BatchNorm check of the model as trained.
        after: the BatchNorm check after recalibration, or None where nothing was recalibrated.
        export: the export, or None where it was not reached.
        environment: versions and machine, as name -> value.
        notes: sentences for a person, one fact each.
    """

    kind: Literal["pipeline"] = "pipeline"
    schema_version: Literal[2] = SCHEMA_VERSION
    title: str = "jumpout-export"
    training: TrainingHistory | None = None
    before: BatchNormReport | None = None
    after: BatchNormReport | None = None
    export: ExportReport | None = None
    environment: dict[str, str] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)

    def __bool__(self) -> bool:
        parts = [part for part in (self.batchnorm, self.export) if part is not None]
        return bool(parts) and all(parts)

    def _line(self) -> str:
        parts = [part._line() for part in (self.batchnorm, self.export) if part is not None]
        return "; ".join([self.title, *(parts or ["nothing was checked"])])

    @property
    def batchnorm(self) -> BatchNormReport | None:
        """The check that counts: after recalibration, or the only one."""
        return self.after if self.after is not None else self.before


Report = BatchNormReport | BatchNormSetsReport | VerifyReport | ExportReport | PipelineReport


def json_schema() -> dict[str, Any]:
    """Returns the JSON Schema of all reports, as `docs/report.schema.json` holds it."""
    from pydantic import TypeAdapter

    schema = TypeAdapter(Report).json_schema(mode="serialization")
    return {"title": f"Reports of jumpout-export, version {SCHEMA_VERSION}", **schema}


def passes(checks: Iterable[Check], providers: Mapping[str, ProviderReport] | None = None) -> bool:
    """Returns whether a report of these checks and providers passed: nothing blocks it, and every provider passed."""
    others = (providers or {}).values()
    return not any(check.blocks for check in checks) and all(provider.verdict == "pass" for provider in others)


def counted(
    name: str, problems: list[str], good: str = "none", most: int = 8, otherwise: CheckVerdict = "fail"
) -> Check:
    """Returns a check that passes if nothing was found: measured is the number of problems, limit 0.

    The note names the first problems, at most `most`, one phrase each, or is `good` if there are none; the verdict on
    problems is `otherwise`.
    """
    note = joined(problems, most) or good
    return Check(name=name, measured=len(problems), limit=0, verdict=otherwise if problems else "pass", note=note)


def limited(name: str, measured: float, limit: float, note: str) -> Check:
    """Returns a check that passes if what was measured is no more than the limit; NaN is more."""
    verdict: CheckVerdict = "pass" if measured <= limit else "fail"
    return Check(name=name, measured=measured, limit=limit, verdict=verdict, note=note)


def not_run(providers: Iterable[str], reason: str) -> VerifyReport:
    """Returns the report of a comparison that was not reached."""
    verdicts = {provider: ProviderReport(verdict="not_run", reason=reason) for provider in providers}
    return VerifyReport(passed=False, providers=verdicts)
