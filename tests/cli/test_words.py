"""Notes on the command line name commands and options, not calls of Python."""

import json

import pytest

from jumpout_export.batchnorm.judge.explain import CALL
from jumpout_export.cli.words import in_commands, sentence_in_commands
from jumpout_export.report import Check, VerifyReport


@pytest.mark.parametrize(
    ("python", "words"),
    [
        (
            f"recalibrate it with {CALL}, say training_batch_size= if",
            "recalibrate it with `recalibrate-bn`, say --training-batch-size if",
        ),
        ("recalibrate_batchnorm(model, batches, layers=['a.1'])", "`recalibrate-bn --layers a.1`"),
        ("pass dynamic_batch=False (--static) to export", "pass --static to export"),
        ("leave `h` out of dynamic_axes (--dynamic)", "leave `h` out of --dynamic"),
        (
            "allowed in `a` (allow, --allow); leave golden (--golden) out",
            "allowed in `a` (--allow); leave --golden out",
        ),
        ("(weigh_by='samples', or else 'pixels')", "(--weigh-by samples, or else pixels)"),
        ("train it with track_running_stats=True (PyTorch)", "train it with track_running_stats=True (PyTorch)"),
    ],
)
def test_a_sentence_says_it_as_the_command_line_does(python, words):
    assert sentence_in_commands(python) == words


def test_only_sentences_change():
    text = "pass dynamic_batch=False (--static)"
    check = Check(name=text, verdict="fail", note=text)
    report = in_commands(
        VerifyReport(passed=False, path=text, checks=[check], notes=[text], environment={"command": text})
    )
    assert (report.path, report.checks[0].name, report.environment) == (text, text, {"command": text})
    assert (report.checks[0].note, report.notes) == ("pass --static", ["pass --static"])


@pytest.mark.integration
def test_check_bn_names_its_sibling(folder, run):
    _, out, _ = run("check-bn", "cli_factories:model", "--data", "data.npz", "--json")
    notes = " ".join(layer["note"] for layer in json.loads(out)["layers"])
    assert "`recalibrate-bn`" in notes
    assert "(model, batches" not in notes
