"""What is attested: names of files, reports of verifications; and keys."""

import subprocess

from jumpout_export.report import Check, ProviderReport, VerifyReport

MODEL = "model.onnx"
DATA = "model.onnx.0123456789abcdef.data"
GOLDEN = ("golden/test_data_set_0/input_0.pb", "golden/test_data_set_0/output_0.pb")
PASSING = [
    Check(name="file/random nodes", measured=0, limit=0, verdict="pass"),
    Check(name="cpu/all/batch=1/worst error", measured=1e-7, limit=1e-5, verdict="pass"),
    Check(name="magnitudes", verdict="not_run", required=False, note="outputs are integers"),
]
WARNING = Check(name="file/metadata", verdict="warning", note="no weights_sha256")
FAILING = Check(name="cpu/all/batch=7/worst error", measured=1.0, limit=1e-5, verdict="fail")


def report_of(checks=(), own=PASSING, **changes):
    """The report of a verification that passed, of these checks beyond its own."""
    checks = [*own, *checks]
    passed = not any(check.blocks for check in checks)
    provider = ProviderReport(verdict="pass" if passed else "fail", reason="" if passed else "one check failed")
    values = {"passed": passed, "providers": {"cpu": provider}, "checks": checks, "path": MODEL}
    values["notes"] = ["compared with old.onnx"]
    return VerifyReport(**{**values, "environment": {"torch": "2.13.0", "command": "verify"}, **changes})


def make_keys(private, public, *kind):
    """Makes a pair with openssl, as the page says."""
    for command in (["genpkey", *kind, "-out", private], ["pkey", "-in", private, "-pubout", "-out", public]):
        subprocess.run(["openssl", *command], check=True, capture_output=True)
