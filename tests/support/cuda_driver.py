"""A small program for compute-sanitizer: every kernel once, with odd sizes and addresses. Not a test of pytest's."""

import torch

from jumpout_export import jumpout

for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
    for shape in ((1,), (129,), (5, 1134), (64, 3, 17, 5)):
        for offset in (0, 1):
            storage = torch.randn(torch.Size(shape).numel() + offset, device="cuda").to(dtype)
            for normalize in ("batch", "sample", "none"):
                x = storage[offset:].view(shape).requires_grad_()
                jumpout(x, relu=True, normalize=normalize).sum().backward()
torch.cuda.synchronize()
print("every kernel ran")
