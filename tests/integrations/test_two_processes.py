"""Both trainers on two gloo processes: every rank serves the same statistics, and training is bitwise the same."""

import importlib.util
import os

import pytest
from support.project import PROJECT
from support.ranks import run_ranks

LIGHTNING = """
import sys
import torch, torch.distributed as dist
import lightning.pytorch as lightning
from jumpout_export.integrations.lightning import ServingStatisticsCallback
from jumpout_export.model.randomness import same_bits
from support.serving import statistics
from test_lightning import Module, loader

def fit(*callbacks):
    module = Module()
    torch.manual_seed(3)
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, callbacks=list(callbacks),
    )
    trainer.fit(module, loader(shuffle=False), loader(32, shuffle=False))
    return module

served, plain = fit(ServingStatisticsCallback(keep=2)), fit()
own = served.validations, statistics(served.model)
"""

TRANSFORMERS = """
import sys
import torch, torch.distributed as dist
from jumpout_export.integrations.transformers import ServingStatisticsCallback
from jumpout_export.model.randomness import same_bits
from support.serving import statistics
from test_transformers import Network, Recorder, fit

plain, recorder = Recorder(), Recorder()
options = {"save_strategy": "no", "ddp_backend": "gloo"}
expected = fit(sys.argv[1], [plain], **options)
model = fit(sys.argv[1], [ServingStatisticsCallback(keep=2), recorder], **options)
served = recorder
recorder.model, plain.model = model, expected
own = recorder.evaluations, statistics(model)
"""

SAME = """
assert same_bits(dict(served.model.named_parameters()), dict(plain.model.named_parameters()))
if dist.get_rank() == 0:  # its buffers count; a validation of DDP's own may copy them to the others or not
    assert same_bits(served.steps, plain.steps)
everyone = [None, None]
dist.all_gather_object(everyone, [[layer for index, layer in enumerate(one) if index % 3 != 2] for one in own[0]])
assert len(everyone[0]) == 2 and same_bits(everyone[0], everyone[1])
print("rank", dist.get_rank(), "done", flush=True)
dist.barrier()
import os
os._exit(0)  # gloo's threads sometimes abort in the destructors of a process that ends normally
"""


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.parametrize(("package", "script"), [("lightning", LIGHTNING), ("transformers", TRANSFORMERS)])
def test_two_processes_serve_the_same_and_train_as_without(tmp_path, package, script):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}")
    file = tmp_path / "run.py"
    file.write_text(script + SAME)
    tests = PROJECT / "tests"
    places = [str(tests), str(tests / "integrations"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    ranks = run_ranks(2, "-W", "ignore", file, tmp_path, cwd=tmp_path, env=environment, timeout=200)
    assert [code for code, _, _ in ranks] == [0, 0], [err[-3000:] for _, _, err in ranks]
    assert [out.count("done") for _, out, _ in ranks] == [1, 1]
