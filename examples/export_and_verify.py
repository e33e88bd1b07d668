"""Export a network to ONNX with the proof that it is right, and see the proof fail where it should.

Run it with `python examples/export_and_verify.py`; it writes to runs/export_and_verify.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from jumpout_export import Jumpout, check_batchnorm, export_onnx, inspect_onnx, recalibrate_batchnorm, verify_onnx

torch.manual_seed(0)
digits = load_digits()  # 1,797 real images of 8 x 8 pixels
images, labels = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16, torch.tensor(digits.target)
model = nn.Sequential(
    nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), Jumpout(sigma=0.1, relu=True)),
    nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), Jumpout(sigma=0.1, relu=True)),
    nn.Sequential(nn.Flatten(), nn.Linear(32 * 64, 10)),
)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for chosen in torch.randperm(len(images)).split(64):
    loss = F.cross_entropy(model(images[chosen]), labels[chosen])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

batches = list(images.split(256))
recalibrate_batchnorm(model, batches)
checked = check_batchnorm(model, batches)
print(f"BatchNorm: {checked.verdict}")

file = Path("runs/export_and_verify/model.onnx")
file.parent.mkdir(parents=True, exist_ok=True)
report = export_onnx(model, file, images[:8], calibration=batches[:2], batchnorm=checked, golden=file.parent)
print(f"export: passed={report.passed}, {len(report.checks)} checks, opset {report.opset}")
print("  folded: " + ", ".join(f"{layer.kind} `{layer.path}` to {layer.action}" for layer in report.folded))
errors = [check for check in report.checks if check.name.endswith("worst error")]
worst = max(errors, key=lambda check: check.measured / check.limit)
print(f"  closest to its limit: {worst.name}, {worst.measured:.1e} of {worst.limit:.1e} allowed")
print(f"inspect: passed={inspect_onnx(file).passed}, without running the file")

with torch.no_grad():
    model[0][0].weight[0] += 0.01  # now the file holds another model
wrong = verify_onnx(file, model, batches[:1])
failed = next(check for check in wrong.checks if check.verdict == "fail")
print(f"verify against other weights: passed={wrong.passed}, {failed.measured:.1e} of {failed.limit:.1e} allowed")


class Forgetful(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, 0.1)  # without training=self.training: random for ever


refused = export_onnx(nn.Sequential(model, Forgetful()), file.with_name("random.onnx"), images[:8])
print(f"random in eval mode: passed={refused.passed}, file written={Path(refused.path).exists()}")
print("  " + next(check.note for check in refused.checks if check.verdict == "fail"))
