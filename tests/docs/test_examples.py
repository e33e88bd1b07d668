"""The examples run as a reader would run them, and print what they claim."""

import os
import re
import subprocess
import sys

import pytest
from support.project import PROJECT
from support.warm import warm_python

pytestmark = pytest.mark.integration

EXAMPLES = sorted((PROJECT / "examples").glob("*.py"))

# Numbers differ between machines and versions; these claims must not.
CLAIMS = {
    "train_with_jumpout": [
        r"    1  .* [1-9]\d\.\d% +[89]\d\.\d%   q 0",
        r"    8  0\.\d+ +9\d\.\d% +9\d\.\d%   q 0\.\d\d, p' 0\.\d\d   q 0\.\d\d, p' 0\.\d\d",
        r"returns its input itself: True",
        r"adds nothing to a checkpoint: True",
    ],
    "check_and_recalibrate": [
        r"as trained: drift, starting at 1\.1",
        r"  0\.1 .* ok\n  1\.1 .* drift\n",
        r"Drift: the variance it is served is 0\.\d+ times the stored one",
        r"test NLL from 0\.\d+ to 0\.\d+",
        r"recalibrated: ok\n",
        r"undone, bitwise as before: True",
    ],
    "resnet_with_dropout": [
        r"epoch 6: loss 0\.\d+",
        r"as trained: drift, starting at 1\.0\.bn2",
        r"  1\.0\.bn1      W = 0\.\d+ .* ok\n  1\.0\.bn2      W = 0\.\d+ .* drift\n",
        r"recalibrated: ok\n",
        r"test NLL      0\.\d+ deployed, 0\.\d+ recalibrated",
    ],
    "watch_training": [
        r"  70   1: 0\.\d+ -> 0\.\d+   4: 0\.\d+ -> 0\.\d+   8: 0\.\d+ -> 0\.\d+   q 0\.\d\d, p' 0\.\d\d\n",
        r"written: bn\.json bn\.svg",
        r"beyond the margin of 0\.05 in the end: .*8",
        r"bitwise the same network without them: True",
    ],
    "export_and_verify": [
        r"BatchNorm: ok",
        r"export: passed=True",
        r"Jumpout `0\.2` to relu, Jumpout `1\.2` to relu",
        r"inspect: passed=True",
        r"verify against other weights: passed=False",
        r"random in eval mode: passed=False, file written=False",
        r"bernoulli.* in module `1` at .*export_and_verify\.py:\d+",
    ],
    "convert_existing_network": [
        r"0\.3: Dropout2d left alone: drops whole channels",
        r"1\.3: Dropout -> Jumpout\n  2\.3: Dropout -> Jumpout",
        r"same eval network after loading the old checkpoint: True",
        r"with jumpout, 2 epochs more: test accuracy 9\d\.\d%",
    ],
}


def missing_claims(claims: list[str], output: str) -> list[str]:
    return [claim for claim in claims if not re.search(claim, output)]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_the_example_prints_what_it_claims(example, tmp_path):
    python = [sys.executable] if example.stem == "train_with_jumpout" else warm_python()
    done = subprocess.run(
        [*python, "-W", "error::UserWarning", str(example)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert missing_claims(CLAIMS[example.stem], done.stdout) == [], done.stdout
    assert done.stderr == ""


def test_every_example_has_claims_and_is_short():
    assert sorted(CLAIMS) == [example.stem for example in EXAMPLES]
    long = {example.stem for example in EXAMPLES if len(example.read_text().splitlines()) >= 60}
    assert long == {"resnet_with_dropout"}, "a whole ResNet and real images take more; nothing else does"


def test_a_claim_that_is_not_printed_is_found():
    output = "as trained: drift, starting at 2.1\n"
    assert missing_claims(CLAIMS["check_and_recalibrate"][:1], output) == CLAIMS["check_and_recalibrate"][:1]
