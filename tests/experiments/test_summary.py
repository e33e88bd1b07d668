"""The tables are what the committed runs say, and the runs say what the theory does."""

import itertools
import re
import statistics

import pytest

from experiments.accuracy_tables import table_1, table_2
from experiments.config import Config
from experiments.figures import mean_rate
from experiments.mechanism_tables import BEHIND_POOLING, within_bounds
from experiments.paper import HERE, jobs
from experiments.paper_values import ablation_name
from experiments.repeat import compare
from experiments.results import Epoch, Ratio, Result, Served, read_result
from experiments.serving_tables import lost
from experiments.statistics_compared import markdown, read
from experiments.summary import write_summary
from experiments.tables import accuracy, by_name, distinct, gain, largest_w, of_row, recalibrated

COMMITTED = sorted((HERE / "results" / "cpu").glob("*.json"))


def result(name, seed, value, after=0.5, rows=("Table 1",), w=0.1):
    settings = {"rows": rows, "label": name, "network": "cifar10s", "training": {"epochs": 1}}
    return Result(
        config=Config(regularizer={"kind": "dropout", "p": 0.1}, **settings),
        name=name,
        seed=seed,
        data="",
        parameters=1,
        epochs=[Epoch(train_loss=1, train_accuracy=0.5, test_loss=1, test_accuracy=value, seconds=1)],
        served=Served(accuracy=value, accuracy_after=after, nll=1, nll_after=1, exported=True, w={"bn": w}),
        machine={"threads": "1"},
    )


@pytest.fixture(scope="module")
def committed():
    return by_name([read_result(path) for path in COMMITTED])


def test_every_run_of_the_protocol_is_committed_with_its_own_configuration():
    todo = jobs(HERE / "configs" / "cpu")
    assert {path.name for path in COMMITTED} == {f"{job.name}-{job.seed}.json" for job in todo}
    for job in todo:
        assert read_result(job.result(HERE / "results" / "cpu")).config == job.config


@pytest.mark.integration
def test_the_page_is_what_the_committed_results_make(tmp_path):
    write_summary(HERE / "results" / "cpu", tmp_path / "README.md", "cpu")
    assert (tmp_path / "README.md").read_text() == (HERE / "README.md").read_text()
    for figure in (tmp_path / "figures" / "cpu").glob("*.svg"):
        assert (HERE / "figures" / "cpu" / figure.name).exists()


def test_every_section_of_the_index_is_there():
    text = (HERE / "README.md").read_text()
    headings = [line.lstrip("# ") for line in text.splitlines() if line.startswith("#")]
    links = re.findall(r"\]\(#([^)]+)\)", text)
    assert len(links) == 12
    assert set(links) <= {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_network_was_exported_and_no_recalibrated_one_drifts(committed):
    for one in itertools.chain(*committed.values()):
        assert one.served.exported, one.name
        assert one.served.verdict_after != "drift", one.name


def test_the_measured_ratios_lie_within_the_bounds_and_the_first_layers_on_the_closed_form(committed):
    count = 0
    rows = {**of_row(committed, "Figs 3 and 5"), **of_row(committed, "pooling")}
    for results in rows.values():
        settings = results[0].config.regularizer
        alpha = 1.0 if settings["kind"] == "dropout" else settings.get("alpha", 0.75)
        for ratio in itertools.chain(*(one.epochs[-1].ratios for one in results)):
            pooled = ratio.layer in BEHIND_POOLING and "pooling" not in results[0].config.rows
            direct = ratio.mode == "alone" and not pooled
            if not direct and (ratio.mode, ratio.layer) != ("stored", "conv2"):
                continue
            count += 1
            assert within_bounds(ratio, alpha, 5.0)
            assert abs(ratio.mean - ratio.mean_expected) <= 5 * ratio.mean_error
            assert abs(ratio.variance - ratio.variance_expected) <= 5 * ratio.variance_error
    assert count >= 100  # t with 15 degrees of freedom is beyond 5 once in 6000 comparisons


def mean(results, value):
    return statistics.fmean(map(value, results))


def points(ours, others, value):
    return round(100 * gain(ours, others, value)[0], 1)


def test_the_settings_page_says_what_the_runs_say(committed):
    """Every number of docs/settings.md, in its order; where the page says it in words, the words' meaning."""
    text = " ".join((HERE.parent / "docs" / "settings.md").read_text().split())
    none, dropout, rescaled, jumpout, small = (
        committed[name] for name in ("none", "dropout", "table1-001", "jumpout", "fig2-jumpout-0.05")
    )
    # 1
    assert f"drops {mean_rate(jumpout):.2f} and `sigma=0.05` {mean_rate(small):.2f}" in text
    better = [points(small, dropout, value) for value in (accuracy, recalibrated)]
    assert f"{better[0]} points better than dropout as trained and {better[1]} after recalibration" in text
    for value in (accuracy, recalibrated):
        difference, error = gain(jumpout, dropout, value)
        assert abs(difference) < 2 * error
    # 2
    assert all(2 <= points(one, none, accuracy) <= 3 for one in (rescaled, small))
    assert points(dropout, none, accuracy) < 0
    for kind, tenth in (("dropout", dropout), ("rescaled", rescaled)):
        for value in (accuracy, recalibrated):
            assert points(committed[f"fig2-{kind}-0.3"], tenth, value) < -2
    assert points(committed["fig2-jumpout-0.2"], small, recalibrated) < -2
    # 3
    normed = [one for one in itertools.chain(*distinct(committed).values()) if one.served.w]
    drifting = [one for one in normed if one.served.verdict == "drift"]
    assert f"{len(drifting)} of {len(normed)} drifted" in text
    assert all(one.config.regularizer["kind"] == "none" for one in normed if one.served.verdict == "ok")
    gains = sorted(100 * (recalibrated(one) - accuracy(one)) for one in drifting)
    assert f"{statistics.median(gains):.0f} points in the median, {statistics.fmean(gains):.0f} on average" in text
    assert f"and {points_of(committed['fig2-dropout-0.5']):.0f} with dropout at 0.5" in text
    assert f"{NUMBERS[sum(one < 0 for one in gains)]} of the {len(gains)} got worse" in text
    assert gains[0] >= -0.25
    assert abs(points_of(rescaled)) < 0.3
    # 4
    behind, both = committed["pooled-dropout"], committed["pooled-rescaled"]
    assert 0.4 < mean(behind, largest_w) / mean(dropout, largest_w) < 0.6
    assert 1.5 < points(behind, dropout, accuracy) < 2.9
    smallest = min(
        mean(results, largest_w) for results in committed.values() if results[0].epochs[-1].rate and results[0].served.w
    )
    assert round(mean(both, largest_w), 2) == 0.05
    assert mean(both, largest_w) == smallest
    assert abs(points(behind, dropout, recalibrated)) < 0.5
    assert -1.7 < points(committed["pooled-jumpout"], jumpout, recalibrated) < -0.8
    # 5
    half = committed["alpha-0.5-0.1"]
    assert (len(half), round(mean(half, largest_w), 2), round(mean(rescaled, largest_w), 2)) == (1, 0.06, 0.13)
    assert abs(mean(half, recalibrated) - mean(rescaled, recalibrated)) < 0.011
    last = {name: mean(committed[f"depth-{name}"], lambda one: list(one.served.w.values())[-1]) for name in ALPHAS}
    assert {name: round(value, 2) for name, value in last.items()} == ALPHAS
    difference, error = gain(committed["depth-1"], committed["depth-0.75"], accuracy)
    assert abs(difference) < 2 * error
    # 6
    assert mean_rate(committed["fig2-jumpout-0.1-nobn"]) == pytest.approx(0.5, abs=0.05)
    assert sorted(accuracy(one) < 0.1 for one in committed["fig2-jumpout-0.1-nobn"]) == [False, True]
    assert mean(committed["fig2-jumpout-0.05-nobn"], accuracy) > 0.5
    # the table of modifications
    shown = re.findall(r"\| ([^|]*± [^|]*) \| ([^|]*± [^|]*) \| ([^|]*± [^|]*) \|", text)
    made = re.findall(r"\| I+ [^|]*\| ([^|]*± [^|]*) \| ([^|]*± [^|]*) \| ([^|]*± [^|]*) \|", table_1(committed))
    assert len(shown) == 3
    assert shown == made


def test_the_settings_page_says_what_validation_shows(committed):
    text = " ".join((HERE.parent / "docs" / "settings.md").read_text().split())
    dropout, jumpout, none = (committed[f"serving-{name}"] for name in ("dropout", "jumpout", "none"))

    def both(results) -> tuple[str, str]:
        running = mean(results, lambda one: one.epochs[3].test_accuracy)
        return f"{100 * running:.1f}%", f"{100 * mean(results, lambda one: one.epochs[3].serving_accuracy):.1f}%"

    assert "reads {} by its running statistics and can serve {}".format(*both(dropout)) in text
    assert "jumpout at `sigma=0.1` {} and {}".format(*both(jumpout)) in text
    assert "no noise {} and {}".format(*both(none)) in text
    costs = [f"{100 * lost(results):.1f}" for results in (dropout, jumpout, none)]
    assert (
        f"costs {costs[0]} points with that dropout, {costs[1]} with that jumpout and {costs[2]} without noise" in text
    )
    assert all(len(results) >= 2 for results in (dropout, jumpout, none))


SAME_TRAINING = {
    "serving-none": "none",
    "serving-dropout": "fig2-dropout-0.2",
    "serving-jumpout": "jumpout",
    "serving-jumpout-alpha-1": "table1-110",
}


@pytest.mark.parametrize("name", SAME_TRAINING)
def test_testing_by_serving_statistics_left_the_training_as_it_was(committed, name):
    for one, two in zip(committed[name], committed[SAME_TRAINING[name]], strict=False):
        assert [epoch.test_accuracy for epoch in one.epochs] == [epoch.test_accuracy for epoch in two.epochs]


def test_the_settings_page_shows_the_comparison_of_statistics():
    page = (HERE.parent / "docs" / "settings.md").read_text()
    rows = read()
    assert markdown(rows) in page
    trained, exact, serving = (
        rows[name] for name in ("as trained", "`recalibrate_batchnorm`, exact", "`ServingStatistics`, 8 batches")
    )
    for seed in range(3):
        assert serving.w[seed] < 0.4 * trained.w[seed]
        assert serving.nll[seed] < trained.nll[seed] - 0.1
        assert abs(serving.accuracy[seed] - exact.accuracy[seed]) < 0.02


def points_of(results):
    return 100 * (mean(results, recalibrated) - mean(results, accuracy))


ALPHAS = {"1": 0.05, "0.75": 0.1, "0.5": 0.26}
NUMBERS = ("none", "one", "two", "three", "four", "five")


def ratio(average, variance, keep=0.8, rho=0.5, alpha=0.75):
    expected = {"mean_expected": keep ** (1 - alpha), "variance_expected": 1.0, "rho": rho}
    errors = {"mean_error": 1e-3, "variance_error": 1e-3}
    return Ratio(layer="conv2", mode="alone", keep=keep, mean=average, variance=variance, **errors, **expected)


def test_the_bounds_tell_what_no_rho_can_give():
    low, high = 0.8**0.5, 0.8**-0.5
    mean = 0.8**0.25
    assert within_bounds(ratio(mean, (low + high) / 2), 0.75)
    assert not within_bounds(ratio(mean, low - 0.01), 0.75)
    assert not within_bounds(ratio(mean, high + 0.01), 0.75)
    assert not within_bounds(ratio(mean + 0.01, 1.0), 0.75)


def test_the_effect_of_a_modification_is_the_mean_difference_over_seeds():
    groups = {}
    for flags in itertools.product((False, True), repeat=3):
        name = ablation_name(flags)
        # I adds 2 points with seed 0 and 4 with seed 1, II takes 10, III adds 5.
        groups[name] = [
            result(name, seed, 0.5 + (0.02, 0.04)[seed] * flags[0] - 0.1 * flags[1] + 0.05 * flags[2])
            for seed in (0, 1)
        ]
    text = table_1(groups)
    assert "| I half-normal rate | +3.0 ± 1.0 | +0.0 ± 0.0 | +0.000 ± 0.000 |" in text
    assert "| II normalised by q | -10.0 ± 0.0 |" in text
    assert "| III rescaled | +5.0 ± 0.0 |" in text
    del groups["table1-101"]
    assert "what each adds" not in table_1(groups)


@pytest.mark.parametrize(
    ("jumpout", "says"),
    [
        ([0.60, 0.61], "+10.0 ± 0.7, the order of the paper"),
        ([0.40, 0.41], "-10.0 ± 0.7, **not the order of the paper**"),
        ([0.48, 0.54], "+0.5 ± 3.0, not told apart"),
        ([0.60], "one seed: not known"),
    ],
)
def test_the_order_of_methods_is_said_plainly(jumpout, says):
    groups = {
        "dropout": [result("dropout", seed, value) for seed, value in enumerate((0.50, 0.51))],
        "jumpout": [result("jumpout", seed, value) for seed, value in enumerate(jumpout)],
    }
    assert f"| jumpout (p 0.1) - dropout (p 0.1) | - / - | {says} |" in table_2(groups)


def test_a_repeated_run_must_be_the_same_or_within_the_noise_of_seeds():
    runs = [result("none", seed, value) for seed, value in enumerate((0.56, 0.57, 0.58))]
    assert compare(runs[0].model_copy(update={"data": "elsewhere"}), runs) == (
        True,
        "none seed 0: every number is the same",
    )
    good, line = compare(result("none", 0, 0.575), runs)
    assert good
    assert "accuracy 57.5%, committed 57.0%, 0.4 standard errors" in line
    good, line = compare(result("none", 0, 0.65), runs)
    assert not good
    assert line.endswith("NOT REPEATED")
