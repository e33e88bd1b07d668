"""The same command gives the same JSON, bit for bit, in another process too; another seed gives other noise."""

import json

import pytest
from support.commands import process, random_file

pytestmark = pytest.mark.integration

DATA = ("--data", "data.npz")
COMMANDS = {
    "check-bn": ["check-bn", "cli_factories:random_weights", *DATA],
    "recalibrate-bn": ["recalibrate-bn", "cli_factories:random_weights", *DATA, "--dry-run"],
    "export": ["export", "cli_factories:random_weights", "m.onnx", *DATA, "--recalibrate"],
    "export of random inputs": ["export", "cli_factories:random_weights", "m.onnx", "--input-shape", "2,1,8,8"],
    "verify": ["verify", "verified.onnx", "--against", "cli_factories:model", *DATA],
    "fold": ["fold", "random.onnx", "folded.onnx"],
    "inspect": ["inspect", "random.onnx"],
    "info": ["info"],
    "demo": ["demo", "--out", "o", "--epochs", "1"],
}


def result(command, seed=0):
    """The JSON that a command of its own process prints."""
    seeded = [] if command[0] in {"inspect", "info"} else ["--seed", str(seed)]
    done = process([*command, *seeded, "--json"])
    assert done.stdout, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "command",
    [pytest.param(it, marks=pytest.mark.slow) if name == "demo" else it for name, it in COMMANDS.items()],
    ids=COMMANDS,
)
def test_the_same_command_gives_the_same_json_bit_for_bit(folder, command):
    random_file("random.onnx")
    if command[0] == "verify":
        process(["export", "cli_factories:model", "verified.onnx", *DATA])
    assert result(command) == result(command)


def test_another_seed_draws_other_noise(folder):
    """The test above would pass on a check that draws nothing."""
    drawn = [json.loads(result(COMMANDS["check-bn"], seed))["layers"][0]["stale"] for seed in (0, 1)]
    assert drawn[0] != drawn[1]
