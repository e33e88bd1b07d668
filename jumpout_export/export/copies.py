"""Changed copies of a saved file that ONNX Runtime can open: local functions inlined, external data beside them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from jumpout_export.export.refold_edit import external_files

if TYPE_CHECKING:
    from onnx import ModelProto


def inlined(model: ModelProto) -> ModelProto:
    """Returns the model with the bodies of its local functions in their places."""
    if not model.functions:
        return model
    from onnx import inliner

    return inliner.inline_local_functions(model)


def copy_data(path: Path, model: ModelProto, folder: Path) -> None:
    """Copies the external data of the model at `path` to a folder."""
    for name in external_files(model):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path.parent / name, folder / name)
