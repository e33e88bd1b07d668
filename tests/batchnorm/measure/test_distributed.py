"""Check and recalibration spread over processes: the same numbers as one process, or one clear error on every rank."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support.distributed_worker import SAMPLES, network, samples, shard
from support.project import PROJECT
from support.ranks import run_ranks

from jumpout_export import check_batchnorm, recalibrate_batchnorm
from jumpout_export.batchnorm.measure.distributed import Ranks
from jumpout_export.loading import load_data, share_of

pytestmark = pytest.mark.integration

WORKER = PROJECT / "tests" / "support" / "distributed_worker.py"


def run(scenario, ranks, tmp_path, expect=0):
    """Runs the scenario in `ranks` processes and returns what each of them wrote."""
    done = run_ranks(ranks, WORKER, scenario, tmp_path)
    assert any(code for code, _, _ in done) == bool(expect), [err[-3000:] for _, _, err in done]
    return [json.loads(path.read_text()) for path in sorted(tmp_path.glob("rank*.json"))]


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_check_merges_uneven_shards_exactly(tmp_path, ranks):
    results = run("check", ranks, tmp_path)
    assert len(results) == ranks
    assert all(result == results[0] for result in results), "the ranks report different things"
    merged = results[0]["report"]
    alone = check_batchnorm(network(), shard(0, 1), samples=SAMPLES)
    assert merged["ranks"] == ranks
    assert merged["samples"] == alone.samples == SAMPLES
    assert merged["verdict"] == alone.verdict == "drift"
    assert merged["origin"] == alone.origin
    for ours, theirs in zip(merged["layers"], alone.layers, strict=True):
        for name in ("delta", "log_ratio", "delta_se", "log_ratio_se"):
            assert ours[name] == pytest.approx(getattr(theirs, name), rel=1e-6, abs=1e-9)
        assert ours["w"] == pytest.approx(theirs.w, rel=1e-6)
        assert ours["samples"] == theirs.samples
    for name in ("kl", "flip_rate", "logit_shift", "top1_before", "top1_after", "nll_before", "nll_after", "labelled"):
        # The recalibrated copy is the same to about 1e-6 of its statistics.
        assert merged["outputs"][name] == pytest.approx(getattr(alone.outputs, name), rel=1e-3, abs=1e-6), name


@pytest.mark.parametrize("ranks", [2, 3])
def test_recalibrated_statistics_are_equal_on_all_ranks_and_equal_those_of_one_process(tmp_path, ranks):
    results = run("recalibrate", ranks, tmp_path)
    assert len(results) == ranks
    assert all(result == results[0] for result in results)
    assert results[0]["undone"]
    model = network()
    recalibrate_batchnorm(model, shard(0, 1, batch_size=50))
    for name, values in results[0]["state"].items():
        torch.testing.assert_close(torch.tensor(values), model.state_dict()[name], rtol=1e-6, atol=1e-6)


def test_an_exception_on_one_rank_ends_all_of_them_with_its_text(tmp_path):
    results = run("exception", 3, tmp_path)
    assert len(results) == 3
    assert "OSError: the disk is gone" in results[1]["error"]
    for rank in (0, 2):
        assert "NotVerifiableError: rank 1 failed" in results[rank]["error"]
        assert "the disk is gone" in results[rank]["error"]
    assert all(result["unchanged"] for result in results)


def test_a_rank_that_dies_ends_the_others_with_a_clear_error(tmp_path):
    command_failed = 1
    results = run("death", 2, tmp_path, expect=command_failed)
    # The survivor may be ended before it has written anything; what it does write must be this.
    for result in results:
        assert "another process of the group has ended" in result["error"]
        assert result["unchanged"]


def test_ranks_with_different_statistics_are_told_which_layer(tmp_path):
    results = run("different", 2, tmp_path)
    assert len(results) == 2
    for result in results:
        assert "BatchNorm `4` differ between rank 0 and rank 1" in result["error"]
        assert result["unchanged"]


def of_rank_0(results):
    """What one process says of a model with the buffers of the first rank."""
    model = network()
    state = model.state_dict()
    for name, values in results[0]["running"].items():
        state[name] = torch.tensor(values)
    state |= {name: tensor + 1 for name, tensor in state.items() if name.endswith("num_batches_tracked")}
    model.load_state_dict(state)
    return check_batchnorm(model, shard(0, 1), samples=SAMPLES)


def assert_same_layers(report, alone):
    assert (report["verdict"], report["origin"]) == (alone.verdict, alone.origin)
    for ours, theirs in zip(report["layers"], alone.layers, strict=True):
        assert ours["w"] == pytest.approx(theirs.w, rel=1e-5)
        assert ours["delta"] == pytest.approx(theirs.delta, rel=1e-5, abs=1e-7)


NOTE = "The buffers differed between ranks, as DistributedDataParallel leaves them"


def test_what_ddp_would_broadcast_is_checked_and_everything_is_put_back(tmp_path):
    results = run("ddp", 2, tmp_path)
    assert len(results) == 2
    assert results[0]["running"] != results[1]["running"], "or nothing is tested"
    for result in results:
        assert "error" not in result
        assert_same_layers(result["report"], of_rank_0(results))
        assert any(NOTE in note for note in result["report"]["notes"])
        assert result["unchanged"]
        assert result["undone"]
        assert result["fixed"] == results[0]["fixed"]


@pytest.mark.parametrize("scenario", ["ddp without broadcast", "ddp, the model in it"])
def test_where_nothing_is_broadcast_the_error_holds_the_lines_that_mend_it(tmp_path, scenario):
    results = run(scenario, 2, tmp_path)
    assert len(results) == 2
    for result in results:
        assert "differ between rank 0 and rank 1, as each trained on its own samples" in result["error"]
        assert result["unchanged"]
        assert_same_layers(result["report"], of_rank_0(results))  # after the two lines of the error
        assert not any(NOTE in note for note in result["report"]["notes"])


def test_a_process_group_needs_torch_distributed():
    with pytest.raises(ValueError, match="needs an initialised torch"):
        check_batchnorm(network(), shard(0, 1), process_group="world")


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_the_shares_of_the_ranks_add_up(size):
    shares = []
    for rank in range(size):
        ranks = Ranks()
        ranks.rank, ranks.size = rank, size
        shares.append(ranks.share(100))
    assert sum(shares) == 100
    assert max(shares) - min(shares) <= 1


def test_the_shards_of_this_test_hold_every_sample_once():
    x, _ = samples()
    parts = [batch for rank in range(3) for batch, _ in shard(rank, 3)]
    assert sum(map(len, parts)) == len(x)
    assert torch.equal(torch.cat(parts).sum(0), x[[*range(0, 203, 3), *range(1, 203, 3), *range(2, 203, 3)]].sum(0))


def torchrun(*arguments, cwd):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "PYTHONPATH": str(WORKER.parent), "OMP_NUM_THREADS": "1"}
    command += ["-m", "jumpout_export", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_torchrun_shares_the_samples_between_processes_and_prints_one_report(tmp_path):
    x, labels = samples()
    np.savez(tmp_path / "data.npz", inputs=x.numpy(), labels=labels.numpy())
    arguments = ("check-bn", "distributed_worker:network", "--data", "data.npz", "--batch-size", "16", "--json")
    done = torchrun(*arguments, cwd=tmp_path)
    report = json.loads(done.stdout)
    assert done.returncode == 1, "torchrun passes on that the verdict is drift"
    assert (report["ranks"], report["samples"], report["verdict"]) == (2, SAMPLES, "drift")
    alone = check_batchnorm(network(), shard(0, 1), samples=SAMPLES)
    assert [layer["w"] for layer in report["layers"]] == pytest.approx([layer.w for layer in alone.layers], rel=1e-6)


def test_two_processes_recalibrate_once(tmp_path):
    x, _ = samples()
    np.savez(tmp_path / "data.npz", inputs=x.numpy())
    arguments = ("recalibrate-bn", "distributed_worker:network", "--data", "data.npz", "-o", "new.safetensors")
    environment = {**os.environ, "PYTHONPATH": str(WORKER.parent)}
    done = run_ranks(2, "-m", "jumpout_export", *arguments, cwd=tmp_path, env=environment)
    assert [code for code, _, _ in done] == [0, 0], [err[-2000:] for _, _, err in done]
    assert [out.count("PASS") for _, out, _ in done] == [1, 0]
    model = network()
    recalibrate_batchnorm(model, shard(0, 1))
    for name, tensor in load_file(tmp_path / "new.safetensors").items():
        torch.testing.assert_close(tensor, model.state_dict()[name], rtol=1e-6, atol=1e-6)


def test_other_commands_run_in_one_process(tmp_path):
    done = torchrun("info", cwd=tmp_path)
    assert done.returncode == 1
    assert "info runs in one process, got 2 from torchrun; only check-bn and recalibrate-bn share" in done.stderr


def test_the_shares_of_an_array_file_and_of_a_callable_hold_everything_once(tmp_path):
    np.savez(tmp_path / "data.npz", inputs=np.arange(11.0), labels=np.arange(11))
    whole = load_data(str(tmp_path / "data.npz"), batch_size=3)
    parts = [share_of(whole, rank, 3) for rank in range(3)]
    assert sorted(float(x) for part in parts for batch, _ in part for x in batch) == list(range(11))
    assert all(
        float(x) == label for part in parts for batch, labels in part for x, label in zip(batch, labels, strict=True)
    )
    batches = [torch.tensor([float(number)]) for number in range(7)]
    dealt = [[float(batch) for batch in share_of(batches, rank, 2)] for rank in range(2)]
    assert dealt == [[0, 2, 4, 6], [1, 3, 5]]
    assert share_of(batches, 0, 1) is batches


def test_the_shares_of_a_folder_are_read_by_the_process_they_belong_to(tmp_path):
    for index in range(5):
        (tmp_path / "class").mkdir(exist_ok=True)
        Image.new("RGB", (2, 2), (index, 0, 0)).save(tmp_path / "class" / f"{index}.png")
    whole = load_data(str(tmp_path), batch_size=2)
    parts = [share_of(whole, rank, 2) for rank in range(2)]
    seen = [[round(float(sample[0, 0, 0]) * 255) for batch, _ in part for sample in batch] for part in parts]
    assert sorted(map(len, seen)) == [2, 3]
    assert sorted(seen[0] + seen[1]) == [0, 1, 2, 3, 4]
