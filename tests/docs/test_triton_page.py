"""The page about Triton shows configurations that Triton's own message types read."""

from __future__ import annotations

import re

from support.model_repository import parse
from support.project import PROJECT

from jumpout_export.export.triton_config import MAX_BATCH_SIZE

PAGE = (PROJECT / "docs" / "triton.md").read_text(encoding="utf-8")


def test_its_configurations_are_read():
    whole, warmup = (parse(text) for text in re.findall(r"^```text\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
    assert (whole.name, whole.max_batch_size, whole.input[0].name) == ("resnet", MAX_BATCH_SIZE, "input")
    assert (warmup.model_warmup[0].inputs["input"].dims, warmup.model_warmup[0].inputs["input"].zero_data) == (
        whole.input[0].dims,
        True,
    )
