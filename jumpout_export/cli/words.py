"""What the library says in Python, said as the command line has it: notes name commands and options, and no calls."""

from __future__ import annotations

import re
from typing import Any

from jumpout_export.report import Report

# Fields of reports that hold sentences; names, paths and texts of the user stay as they are.
_SENTENCES = {"note", "notes", "reason"}
_RULES = tuple(
    (re.compile(pattern), words)
    for pattern, words in (
        (r"recalibrate_batchnorm\(model, batches, layers=\['([^']*)'\]\)", r"`recalibrate-bn --layers \1`"),
        (r"recalibrate_batchnorm\(model, batches\)", "`recalibrate-bn`"),
        (r"\btraining_batch_size=", "--training-batch-size"),
        (r"\bweigh_by='(\w+)', or else '(\w+)'", r"--weigh-by \1, or else \2"),
        (r"\breference=", "--reference"),
        (r"\bgroups=", "--groups"),
        (r"\bsamples=N\b", "--samples N"),
        (r"\b\w+(?:=\w+)? \((--[a-z-]+)\)", r"\1"),  # both are said: `dynamic_batch=False (--static)`
        (r"\(\w+, (--[a-z-]+)\)", r"(\1)"),
    )
)


def in_commands(report: Report) -> Report:
    """Returns the report with every sentence in terms of the command line."""
    return type(report).model_validate(_translated(report.model_dump(), is_sentence=False))


def sentence_in_commands(text: str) -> str:
    """Returns a sentence in terms of the command line."""
    for pattern, words in _RULES:
        text = pattern.sub(words, text)
    return text


def _translated(value: Any, *, is_sentence: bool) -> Any:
    if isinstance(value, dict):
        return {key: _translated(item, is_sentence=key in _SENTENCES) for key, item in value.items()}
    if isinstance(value, list):
        return [_translated(item, is_sentence=is_sentence) for item in value]
    return sentence_in_commands(value) if is_sentence and isinstance(value, str) else value
