"""Serving statistics of several processes: together they are those of one, and one alone gets an error, not a hang."""

import pytest
from support.ranks import run_ranks

WORKER = """
import datetime, os, sys
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from jumpout_export import ServingStatistics
from jumpout_export.errors import NotVerifiableError
from jumpout_export.model.randomness import same_bits

rank = int(os.environ["RANK"])
dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))

def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(12, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 3), nn.BatchNorm1d(3)
    )

def batches(of):
    generator = torch.Generator().manual_seed(100 + of)
    return [torch.randn(16, 12, generator=generator) + of for _ in range(4)]

def train(model, serving):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for x in batches(rank):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
        if serving is not None:
            serving.step(x)

plain = nn.parallel.DistributedDataParallel(network())
torch.manual_seed(rank)  # other noise on each rank
train(plain, None)
model = nn.parallel.DistributedDataParallel(network())
serving = ServingStatistics(model, keep=3, timeout=3)
torch.manual_seed(rank)
train(model, serving)
assert same_bits(dict(model.state_dict()), dict(plain.state_dict()))
own = [buffer.clone() for buffer in model.buffers()]
everyone = [None, None]
dist.all_gather_object(everyone, own)
assert not same_bits(everyone[0], everyone[1])  # as DDP leaves them at its defaults

one = network()
one.load_state_dict(model.module.state_dict())
alone = ServingStatistics(one, keep=0)
alone.write([x for of in (0, 1) for x in batches(of)[-3:]])
with serving():
    for name, buffer in model.module.named_buffers():
        expected = one.get_buffer(name)
        if "tracked" not in name:
            torch.testing.assert_close(buffer, expected, rtol=1e-5, atol=1e-6)
    held = [norm.running_var for norm in (model.module[1], model.module[5])]
    dist.all_gather_object(everyone, held)
    assert same_bits(everyone[0], everyone[1])
    assert not torch.allclose(held[1], own[4], rtol=0.05)  # and they are others
assert same_bits([buffer.clone() for buffer in model.buffers()], own)

if rank == 0:  # as one validates
    try:
        with serving():
            raise SystemExit("entered alone")
    except NotVerifiableError as error:
        assert "rank 1 did not come within 3 s; using ServingStatistics is collective" in str(error), error
    assert same_bits([buffer.clone() for buffer in model.buffers()], own)
dist.barrier()
with serving():  # a meeting that failed leaves nothing behind
    pass
if rank == 1:
    serving._kept.clear()
try:
    serving.write()
    raise SystemExit("nothing was kept on rank 1")
except (RuntimeError, NotVerifiableError) as error:
    assert "no batch was kept" in str(error), error
assert same_bits([buffer.clone() for buffer in model.buffers()], own)
dist.barrier()

sharded = network()
sharded.load_state_dict(one.state_dict())
fully_shard(sharded)
shared = ServingStatistics(sharded, keep=3)  # its weights are on both ranks, so that a read is collective too
for x in batches(rank)[-3:]:
    shared.step(x)
with shared():
    for name, buffer in sharded.named_buffers():
        torch.testing.assert_close(buffer, one.get_buffer(name), rtol=1e-5, atol=1e-6)
dist.barrier()
print("rank", rank, "done", flush=True)
os._exit(0)  # gloo's threads sometimes abort in the destructors of a process that ends normally
"""


@pytest.mark.slow
@pytest.mark.integration
def test_two_processes_have_the_statistics_of_one_and_one_alone_does_not_hang(tmp_path):
    script = tmp_path / "serve.py"
    script.write_text(WORKER)
    ranks = run_ranks(2, script)
    assert [code for code, _, _ in ranks] == [0, 0], [err[-3000:] for _, _, err in ranks]
    assert [out for _, out, _ in ranks] == ["rank 0 done\n", "rank 1 done\n"]
