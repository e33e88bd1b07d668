"""The effect on the outputs, against the same numbers computed from two whole models."""

import copy
import dataclasses
import gc
import math

import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn import functional as F

from jumpout_export.batchnorm.check import check_batchnorm
from jumpout_export.batchnorm.measure.feed import Feed
from jumpout_export.batchnorm.measure.layers import batchnorm_layers
from jumpout_export.batchnorm.outputs import output_effect
from jumpout_export.batchnorm.recalibrate import recalibrate_batchnorm
from jumpout_export.batchnorm.solve import solve_exact
from jumpout_export.model.randomness import same_bits
from jumpout_export.report import OutputEffect


def classifier(*extra: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4), nn.BatchNorm1d(4), *extra)
    model[1].running_var.fill_(3.0)
    model[4].running_mean.fill_(0.5)
    return model


def data(count: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(count, 6, generator=generator), torch.randint(0, 4, (count,), generator=generator)


def batches(x: torch.Tensor, labels: torch.Tensor | None = None) -> list[object]:
    if labels is None:
        return list(x.split(64))
    return list(zip(x.split(64), labels.split(64), strict=True))


def effect(model: nn.Module, loader: list[object]) -> OutputEffect:
    outputs = check_batchnorm(model, loader).outputs
    assert outputs is not None
    return outputs


def outputs_before_and_after(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    fixed = copy.deepcopy(model)
    recalibrate_batchnorm(fixed, batches(x))
    with torch.no_grad():
        return [m.eval()(x).double() for m in (copy.deepcopy(model), fixed)]


def ece(p: torch.Tensor, labels: torch.Tensor) -> float:
    confidence, best = p.max(1)
    total = 0.0
    for low in range(15):
        inside = (confidence >= low / 15) & (confidence < (low + 1) / 15 if low < 14 else confidence <= 1)
        if inside.any():
            gap = (best[inside] == labels[inside]).double().mean() - confidence[inside].mean()
            total += float(inside.double().mean() * gap.abs())
    return total


def test_the_effect_equals_that_of_two_models_compared_at_once():
    model = classifier()
    x, labels = data()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    measured = effect(model, batches(x, labels))
    assert same_bits(state, dict(model.state_dict()))
    before, after = outputs_before_and_after(model, x)
    p, q = before.softmax(1), after.softmax(1)
    assert measured.samples == 300
    assert measured.logit_shift == pytest.approx(
        float((after - before).square().mean().sqrt() / before.std(correction=0)), rel=1e-5
    )
    assert measured.logit_shift > 0.1
    assert measured.kl == pytest.approx(float((p * (p / q).log()).sum(1).mean()), rel=1e-4)
    assert measured.flip_rate == pytest.approx(float((before.argmax(1) != after.argmax(1)).double().mean()))
    assert 0 < measured.flip_rate < 1
    for name, outputs in (("before", before), ("after", after)):
        top1 = float((outputs.argmax(1) == labels).double().mean())
        assert getattr(measured, f"top1_{name}") == pytest.approx(top1)
        assert getattr(measured, f"nll_{name}") == pytest.approx(float(F.cross_entropy(outputs, labels)), rel=1e-5)
        assert getattr(measured, f"ece_{name}") == pytest.approx(ece(outputs.softmax(1), labels), abs=1e-4)


def test_without_labels_only_what_needs_none_is_measured():
    measured = effect(classifier(), batches(data()[0]))
    assert measured.kl is not None
    assert measured.top1_before is measured.nll_after is measured.ece_after is None


def test_labels_that_are_no_class_are_left_out():
    model = classifier()
    x, labels = data()
    kept = effect(model, batches(x, labels))
    labels[:100] = -100
    some = effect(model, batches(x, labels))
    before, _ = outputs_before_and_after(model, x)
    assert some.nll_before == pytest.approx(float(F.cross_entropy(before[100:], labels[100:])), rel=1e-5)
    assert some.kl == kept.kl
    assert effect(model, batches(x, torch.full_like(labels, 4))).nll_before is None


def test_probabilities_are_taken_as_such():
    x, labels = data()
    logits, probabilities = classifier(), classifier(nn.Softmax(dim=1))
    one, two = effect(logits, batches(x, labels)), effect(probabilities, batches(x, labels))
    for name in ("kl", "flip_rate", "nll_before", "nll_after", "ece_before", "top1_after"):
        assert getattr(two, name) == pytest.approx(getattr(one, name), rel=1e-5, abs=1e-6)
    assert two.logit_shift != one.logit_shift


def test_outputs_that_are_no_classes_have_a_shift_only():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(3))
    measured = effect(model, [torch.randn(20, 3, 4, 4) + 1])
    # Recalibrating a single BatchNorm moves its output by W per channel: here delta = 1 against a deviation of 1.
    assert measured.logit_shift == pytest.approx(1, abs=0.1)
    assert measured.kl is measured.flip_rate is None


def test_nothing_to_recalibrate_shifts_nothing():
    model = classifier()
    x, labels = data()
    recalibrate_batchnorm(model, batches(x))
    measured = effect(model, batches(x, labels))
    assert (measured.logit_shift, measured.flip_rate) == (0, 0)  # not that of a copy that is less exact
    for name in ("top1", "nll", "ece"):
        assert getattr(measured, f"{name}_before") == getattr(measured, f"{name}_after")
    assert (measured.ece_change_low, measured.ece_change_high) == (0, 0)


def test_poisoned_statistics_show_as_nan_before_and_numbers_after():
    model = classifier()
    model[1].running_var[0] = math.nan
    x, labels = data()
    measured = effect(model, batches(x, labels))
    assert math.isnan(measured.nll_before)
    assert math.isnan(measured.logit_shift)
    assert math.isfinite(measured.nll_after)


def test_a_copy_that_cannot_be_made_is_named_in_the_notes():
    x, _ = data()
    frozen = classifier().train()
    frozen[1].eval()
    frozen[4].eval()
    report = check_batchnorm(frozen, batches(x))
    assert report.outputs is None
    assert report.notes[-1].startswith("The effect on the outputs was not measured: no BatchNorm layer is left")


def test_an_output_without_a_tensor_is_named_in_the_notes():
    class Silent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm1d(6)

        def forward(self, x: torch.Tensor) -> str:
            self.bn(x)
            return "done"

    report = check_batchnorm(Silent(), batches(data()[0]))
    assert report.outputs is None
    assert "not measured: the model's output must hold a tensor, got str" in report.notes[-1]


def test_an_output_whose_shape_depends_on_the_statistics_is_named_in_the_notes():
    class Picks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm1d(6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.bn(x)
            return y[y[:, 0] > 0.3]

    report = check_batchnorm(Picks(), batches(data()[0] + 3))
    assert report.outputs is None
    assert "not measured: the outputs change shape when recalibrated" in report.notes[-1]


def test_a_deep_model_is_compared_with_a_nearly_exact_copy_and_says_so():
    torch.manual_seed(0)
    blocks = [block for _ in range(12) for block in (nn.Linear(6, 6, bias=False), nn.BatchNorm1d(6), nn.ReLU())]
    report = check_batchnorm(nn.Sequential(*blocks), batches(data()[0]))
    assert report.outputs is not None
    assert report.notes[-1].startswith(
        "The effect on the outputs is that of a copy which after 11 passes still was W ="
    )


def test_batches_of_one_value_per_channel_are_no_obstacle():
    report = check_batchnorm(classifier(), list(data(20)[0].split(1)))
    assert report.outputs is not None
    assert report.outputs.samples == 20


def test_outputs_can_be_left_out():
    assert check_batchnorm(classifier(), batches(data()[0]), outputs=False).outputs is None


def test_the_change_in_accuracy_comes_with_its_exact_test_and_interval():
    model = classifier()
    x, labels = data()
    measured = effect(model, batches(x, labels))
    before, after = outputs_before_and_after(model, x)
    right_before, right_after = before.argmax(1) == labels, after.argmax(1) == labels
    gained, lost = int((~right_before & right_after).sum()), int((right_before & ~right_after).sum())
    assert gained > 3
    assert lost > 3
    assert measured.labelled == 300
    assert measured.mcnemar_p == pytest.approx(stats.binomtest(gained, gained + lost).pvalue)
    change = measured.top1_after - measured.top1_before
    assert change == pytest.approx((gained - lost) / 300)
    assert measured.top1_change_low < change < measured.top1_change_high
    # The textbook interval is close at 300 samples.
    half = 1.96 * math.sqrt(((gained + lost) / 300 - change**2) / 300)
    assert measured.top1_change_low == pytest.approx(change - half, abs=0.005)
    assert measured.top1_change_high == pytest.approx(change + half, abs=0.005)


def test_the_change_in_nll_comes_with_its_paired_interval():
    model = classifier()
    x, labels = data()
    measured = effect(model, batches(x, labels))
    before, after = (F.cross_entropy(y, labels, reduction="none") for y in outputs_before_and_after(model, x))
    change = after - before
    half = 1.959964 * float(change.std()) / math.sqrt(300)
    assert measured.nll_change_low == pytest.approx(float(change.mean()) - half, rel=1e-4)
    assert measured.nll_change_high == pytest.approx(float(change.mean()) + half, rel=1e-4)


@pytest.mark.parametrize(
    "labels",
    [
        0.7 * F.one_hot(data()[1], 4) + 0.1 * 0.75,
        data()[1].float(),
        data()[1].tolist(),
        ["cat"] * 300,
        data()[1][:, None],
    ],
    ids=["soft", "floating point", "list", "texts", "column"],
)
def test_labels_of_another_kind_count_as_none(labels):
    x, _ = data()
    parts = [{"image": x[i : i + 100], "labels": labels[i : i + 100]} for i in range(0, 300, 100)]
    measured = effect(classifier(), parts)
    assert measured.kl is not None
    assert measured.labelled == 0
    assert measured.top1_before is measured.nll_before is measured.mcnemar_p is measured.nll_change_low is None


def test_one_sample_has_no_error_bar_for_its_likelihood():
    x, labels = data()
    labels[1:] = -1
    measured = effect(classifier(), batches(x, labels))
    assert measured.labelled == 1
    assert measured.nll_before is not None
    assert measured.nll_change_low is None
    assert measured.top1_change_high - measured.top1_change_low > 1


class Segmenter(nn.Module):
    """(N, 3, H, W) scores per pixel, from a BatchNorm whose statistics are off."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 1))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"out": self.body(x), "aux": x}


class PixelFeed(Feed):
    """A feed whose steps have a label per pixel."""

    def __init__(self, model: nn.Module, x: list[torch.Tensor], labels: list[torch.Tensor]) -> None:
        super().__init__(model, x)
        self.pixels = labels

    def replay(self, what, visit):
        pixels = iter(self.pixels)
        return super().replay(what, lambda step: visit(dataclasses.replace(step, labels=next(pixels))))


def segments() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    labels = torch.randint(0, 3, (30, 5, 4), generator=generator)
    labels[:, 0] = 255  # no class
    labels[7] = 255
    return torch.randn(30, 2, 5, 4, generator=generator) * 2, labels


def test_segmentation_is_measured_per_pixel_with_samples_as_the_unit():
    model, (x, labels) = Segmenter(), segments()
    fixed = copy.deepcopy(model)
    recalibrate_batchnorm(fixed, x.split(8))
    feed = PixelFeed(model, x.split(8), labels.split(8))
    measured = output_effect(feed, solve_exact(feed, batchnorm_layers(model)))
    with torch.no_grad():
        before, after = (m.eval()(x)["out"].double() for m in (copy.deepcopy(model), fixed))
    valid = labels != 255
    nll = [F.cross_entropy(y, labels, ignore_index=255) for y in (before, after)]
    assert (measured.nll_before, measured.nll_after) == pytest.approx(tuple(map(float, nll)), rel=1e-5)
    right = [(y.argmax(1) == labels) for y in (before, after)]
    assert measured.top1_before == pytest.approx(float(right[0][valid].double().mean()))
    assert measured.flip_rate == pytest.approx(float((before.argmax(1) != after.argmax(1)).double().mean()))
    p, q = before.softmax(1), after.softmax(1)
    assert measured.kl == pytest.approx(float((p * (p / q).log()).sum(1).mean()), rel=1e-4)
    assert measured.labelled == 29
    assert measured.mcnemar_p is None
    # Every sample with labels has 16 valid pixels: the interval is that of the samples' own changes.
    samples = torch.arange(30) != 7
    changes = (right[1].double() - right[0].double())[:, 1:][samples].mean((1, 2))
    half = 1.959964 * float(changes.std()) / math.sqrt(29)
    middle = float(changes.mean())
    assert (measured.top1_change_low, measured.top1_change_high) == pytest.approx((middle - half, middle + half))


def test_segmentation_without_labels_has_a_shift_only():
    measured = effect(Segmenter(), list(segments()[0].split(8)))
    assert measured.logit_shift > 0.05
    assert measured.kl is None
    assert measured.labelled == 0


def test_memory_does_not_grow_with_the_samples():
    x, labels = data(100)
    model = classifier()
    solution = solve_exact(Feed(model, batches(x)), batchnorm_layers(model))
    alive: list[int] = []

    class Many:
        def __iter__(self):
            for index in range(60):
                if index in {5, 55}:
                    alive.append(sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects()))
                yield x.clone(), labels.clone()

    output_effect(Feed(model, Many()), solution)
    assert alive[1] <= alive[0]
