"""The commands attest and verify-attestation: from an export to its proof, exit codes and a missing extra."""

import json
import subprocess
import sys

import pytest

from jumpout_export.exit_codes import FAILED, NOT_VERIFIED, PASSED, WRONG_USAGE

pytestmark = pytest.mark.integration

EXPORT = ("export", "cli_factories:model", "m.onnx", "--input-shape", "4,1,8,8", "--golden", "golden")
ATTEST = ("attest", "m.onnx", "--report", "r", "--key", "key.pem", "--golden", "golden")
CHECK = ("verify-attestation", "m.onnx.intoto.jsonl", "--public-key", "public.pem")


@pytest.fixture
def keys(folder):
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", "key.pem"], check=True)
    subprocess.run(["openssl", "pkey", "-in", "key.pem", "-pubout", "-out", "public.pem"], check=True)


def test_from_an_export_to_a_proof_that_names_a_changed_byte(folder, keys, run):
    assert run(*EXPORT, "--external-data", "--report", "r")[0] == PASSED
    code, out, err = run(*ATTEST)
    assert (code, err) == (PASSED, "")
    first, *files = out.splitlines()
    assert first.startswith("m.onnx.intoto.jsonl: m.onnx is attested as PASSED, signed with ed25519, key ")
    names = [line.split(maxsplit=1)[1] for line in files]
    weights = next(folder.glob("m.onnx.*.data")).name
    assert names == [
        *("m.onnx, model", f"{weights}, weights"),
        *(f"golden/test_data_set_0/{name}_0.pb, golden data" for name in ("input", "output")),
    ]
    code, out, err = run(*CHECK)
    assert (code, err) == (PASSED, "")
    assert out.startswith("✓ PASS: m.onnx.intoto.jsonl: the statement holds\n")
    with open(weights, "r+b") as file:
        file.write(b"\xff")
    code, out, _ = run(*CHECK, "--json")
    assert code == FAILED
    assert [one["name"] for one in json.loads(out)["checks"] if one["verdict"] == "fail"] == [f"file/{weights}"]
    code, out, _ = run(*CHECK)
    assert code == FAILED
    assert f"✗ fail     file/{weights}" in out
    code, out, err = run(*ATTEST)
    assert (code, out) == (FAILED, "")
    assert err.startswith(f"error: {weights} is not the file that was verified: its sha256 is ")


def test_a_verification_that_failed_is_attested_as_failed(folder, keys, run):
    run(*EXPORT)
    (folder / "other.py").write_text(
        "import cli_factories, torch\ndef model():\n    torch.manual_seed(0)\n"
        "    net = cli_factories.model()\n    net[4].weight.data[0, 0] += 1\n    return net\n"
    )
    code, _, _ = run("verify", "m.onnx", "--against", "other:model", "--input-shape", "4,1,8,8", "--report", "r")
    assert code == FAILED
    code, out, _ = run(*ATTEST)
    assert code == FAILED
    assert "m.onnx is attested as FAILED" in out
    assert "its verification did not pass: " in out
    code, out, _ = run(*CHECK)
    assert code == FAILED
    assert "✗ fail     result" in out


def test_wrong_usage_is_one_line(folder, keys, run):
    run(*EXPORT, "--report", "r")
    for command, said in (
        (("attest", "m.onnx", "--report", "missing.json", "--key", "key.pem"), "--report missing.json cannot be read"),
        (("attest", "m.onnx", "--report", "r", "--key", "public.pem"), "--key public.pem holds no private key"),
        (("attest", "x.onnx", "--report", "r", "--key", "key.pem"), "x.onnx cannot be read: No such file"),
        (("verify-attestation", "m.onnx", "--public-key", "public.pem"), "m.onnx is no signed statement"),
        (("verify-attestation", "x.jsonl", "--public-key", "public.pem"), "x.jsonl cannot be read: No such file"),
    ):
        code, out, err = run(*command)
        assert (code, out, err.count("\n")) == (WRONG_USAGE, "", 1)
        assert err.startswith(f"error: {said}")


@pytest.mark.parametrize("package", ["cryptography", "securesystemslib.dsse", "in_toto_attestation.v1.statement"])
@pytest.mark.parametrize("command", [ATTEST, CHECK], ids=["attest", "verify-attestation"])
def test_a_missing_package_is_named_before_anything_is_read(folder, run, monkeypatch, command, package):
    monkeypatch.setitem(sys.modules, package, None)
    code, out, err = run(*command)
    assert (code, out) == (NOT_VERIFIED, "")
    assert err.startswith(f"error: {package.split('.')[0]} cannot be imported")
    assert err.endswith("install it with pip install 'jumpout-export[attest]'\n")


def test_a_statement_is_verified_without_onnx(folder, keys, run, monkeypatch):
    run(*EXPORT, "--report", "r")
    run(*ATTEST)
    for package in ("onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None)
    assert run(*CHECK)[0] == PASSED
    code, _, err = run(*ATTEST)
    assert code == NOT_VERIFIED
    assert "pip install 'jumpout-export[onnx]'" in err
