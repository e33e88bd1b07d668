"""Paired statistics against scipy, exact enumeration and simulation."""

import math

import pytest
import torch
from scipy import stats

from jumpout_export.effect.paired import CalibrationGap, PairedChange, accuracy_change_interval, mcnemar_p


@pytest.mark.parametrize(
    ("gained", "lost"), [(0, 0), (1, 0), (5, 5), (6, 5), (3, 17), (40, 12), (0, 60), (900, 1000), (40_000, 41_000)]
)
def test_mcnemar_is_the_exact_binomial_test(gained, lost):
    expected = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert mcnemar_p(gained, lost) == pytest.approx(expected, rel=1e-8)
    assert mcnemar_p(gained, lost) == mcnemar_p(lost, gained)


def test_mcnemar_of_a_million_changes_underflows_to_zero_and_no_further():
    assert mcnemar_p(1_000_000, 100) == 0.0


def coverage(interval, samples, up, down):
    """The exact probability that the interval holds up - down: the sum over the trinomial distribution."""
    covered = 0.0
    for gained in range(samples + 1):
        first = stats.binom.pmf(gained, samples, up)
        lost = [lost for lost in range(samples + 1 - gained) if inside(interval(gained, lost, samples), up - down)]
        covered += first * float(stats.binom.pmf(lost, samples - gained, down / (1 - up)).sum())
    return covered


def inside(ends, value):
    return ends[0] <= value <= ends[1]


def wald(gained, lost, samples):
    d = (gained - lost) / samples
    half = 1.96 * math.sqrt(((gained + lost) / samples - d * d) / samples)
    return d - half, d + half


CHANGES = [(0.1, 0.05), (0.02, 0.02), (0.3, 0.1), (0.1, 0.0)]


@pytest.mark.parametrize("samples", [20, 60])
@pytest.mark.parametrize(("up", "down"), CHANGES)
def test_the_interval_of_the_accuracy_change_covers_in_95_of_100_cases(samples, up, down):
    assert coverage(accuracy_change_interval, samples, up, down) > 0.94


def test_the_plain_wald_interval_does_not_cover():
    assert min(coverage(wald, 20, up, down) for up, down in CHANGES) < 0.9


def test_one_value_per_sample_gives_the_paired_interval_of_the_textbook():
    torch.manual_seed(0)
    change = torch.randn(500, dtype=torch.float64) + 0.1
    paired = PairedChange()
    for part in change.split(64):
        paired.add(part, torch.ones_like(part))
    low, high = paired.interval()
    half = 1.959964 * float(change.std()) / math.sqrt(500)
    assert (low, high) == pytest.approx((float(change.mean()) - half, float(change.mean()) + half), rel=1e-9)


def test_values_of_one_sample_that_move_together_do_not_narrow_the_interval():
    torch.manual_seed(0)
    covered = covered_by_pixels = 0
    for _ in range(400):
        count = torch.randint(10, 30, (60,)).double()
        of_sample = torch.randn(60, dtype=torch.float64)  # every pixel of a sample changes by the same; the mean is 0
        paired = PairedChange()
        paired.add(of_sample * count, count)
        low, high = paired.interval()
        covered += low <= 0 <= high
        pixels = of_sample.repeat_interleave(count.long())
        covered_by_pixels += abs(float(pixels.mean())) <= 1.96 * float(pixels.std()) / math.sqrt(len(pixels))
    assert covered / 400 > 0.95 - 6 * math.sqrt(0.95 * 0.05 / 400)
    assert covered_by_pixels / 400 < 0.6  # the naive error bar fails


def test_samples_without_a_value_are_no_samples_and_one_is_not_enough():
    paired = PairedChange()
    paired.add(torch.tensor([0.5, 0.0], dtype=torch.float64), torch.tensor([1.0, 0.0], dtype=torch.float64))
    assert paired.samples == 1
    assert paired.interval() is None


def test_a_change_that_is_not_a_number_stays_one():
    paired = PairedChange()
    paired.add(torch.tensor([1.0, math.nan], dtype=torch.float64), torch.ones(2, dtype=torch.float64))
    assert all(math.isnan(end) for end in paired.interval())


def gaps(p, labels):
    confidence, best = p.max(1)
    return (confidence * 15).long().clamp(0, 14), (best == labels).double() - confidence


def calibration_intervals(change, samples=400, rounds=300):
    """Intervals of the change of the calibration error of a right forecast with noise, behind `change`."""
    generator = torch.Generator().manual_seed(0)

    def noise(scale):
        return scale * torch.randn(samples, 5, generator=generator, dtype=torch.float64)

    for _ in range(rounds):
        logits = noise(2)
        labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
        seen = CalibrationGap(15)
        sides = [gaps(one.softmax(1), labels) for one in (logits + noise(0.1), change(logits + noise(0.1)))]
        seen.add(samples, torch.arange(samples), *sides)
        yield seen, seen.interval()


def test_a_calibration_that_chance_alone_changes_is_not_told_from_one_that_stays():
    covered = [low <= 0 <= high for _, (low, high) in calibration_intervals(lambda logits: logits)]
    assert sum(covered) / len(covered) > 0.95 - 6 * math.sqrt(0.95 * 0.05 / 300)


def test_a_calibration_that_gets_worse_is_told():
    found = [low > 0 for _, (low, _) in calibration_intervals(lambda logits: 2 * logits, samples=1000, rounds=50)]
    assert sum(found) >= 48


def test_calibration_sums_of_several_batches_are_those_of_one():
    whole, (low, high) = next(calibration_intervals(lambda logits: logits * 0.5, rounds=1))
    p = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 1])
    one, two = CalibrationGap(15), CalibrationGap(15)
    one.add(3, torch.arange(3), gaps(p, labels), gaps(p.flip(0), labels))
    for part in (slice(0, 2), slice(2, 3)):
        samples = len(labels[part])
        two.add(samples, torch.arange(samples), gaps(p[part], labels[part]), gaps(p.flip(0)[part], labels[part]))
    assert one.interval() == pytest.approx(two.interval())
    assert (one.size() / 3).tolist() == pytest.approx([(0.1 + 0.6 + 0.2) / 3, (0.8 + 0.6 + 0.9) / 3])
    assert low < float((whole.size()[1] - whole.size()[0]) / 400) < high


def test_one_sample_has_no_interval_of_its_calibration():
    seen = CalibrationGap(15)
    seen.add(1, torch.zeros(4, dtype=torch.long), *[(torch.zeros(4, dtype=torch.long), torch.ones(4))] * 2)
    assert seen.interval() is None
