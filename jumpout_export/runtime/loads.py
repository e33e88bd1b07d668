"""The checks of a saved file: what it holds, and that the runtime loads it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jumpout_export.errors import NotVerifiableError
from jumpout_export.onnxfile.static import can_be_opened, static_checks
from jumpout_export.report import Check
from jumpout_export.runtime.providers import fallback
from jumpout_export.runtime.session import Level, open_session
from jumpout_export.text import first_line

if TYPE_CHECKING:
    from onnx import ModelProto

_NAME = "file/onnxruntime"


def inspect_file(path: Path, model: ModelProto, opens: Callable[[str, Level], Any] | None = None) -> list[Check]:
    """Returns the checks of `inspect_onnx` on a file whose protobuf (without external data) is `model`.

    `opens` opens a session of the file that is run later; without it one is opened that only has to load.
    """
    checks = static_checks(path, model)
    if not can_be_opened(checks):
        return [*checks, Check(name=_NAME, verdict="not_run", note="external data is not opened")]
    return [*checks, _loads(opens or partial(open_session, path, runs=False))]


def _loads(opens: Callable[[str, Level], Any]) -> Check:
    import onnxruntime

    try:
        opens(fallback().name, "off")
    except NotVerifiableError as error:  # another provider may have the kernels, and each one's verdict says whether
        return Check(name=_NAME, verdict="not_run", required=False, note=str(error))
    except Exception as error:  # ONNX Runtime raises a dozen types without a common base
        return Check(name=_NAME, verdict="fail", note=first_line(error))
    return Check(name=_NAME, verdict="pass", note=f"ONNX Runtime {onnxruntime.__version__} loads the file")
