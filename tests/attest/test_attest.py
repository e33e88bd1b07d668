"""A signed statement: read by securesystemslib and openssl as others do, refused after any change, which is named."""

import base64
import json
import os
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import SSlibKey
from support.attested import DATA, FAILING, GOLDEN, MODEL, WARNING, make_keys

from jumpout_export.attest.attest import attest_onnx
from jumpout_export.attest.check import verify_attestation
from jumpout_export.attest.keys import PASSWORD
from jumpout_export.errors import LoadError, NotAttestableError
from jumpout_export.report import Check, ExportReport, PipelineReport

OUT = "model.onnx.intoto.jsonl"
EC = {curve: ("-algorithm", "EC", "-pkeyopt", f"ec_paramgen_curve:{curve}") for curve in ("P-256", "P-384", "P-521")}
FILES = [MODEL, DATA, *GOLDEN]


def attest(**options):
    return attest_onnx(MODEL, "report.json", "key.pem", **{"golden": "golden", **options})


def envelope():
    return json.loads(Path(OUT).read_text())


def statement():
    return json.loads(base64.b64decode(envelope()["payload"]))


def is_signed_by(public, document=None):
    """What securesystemslib says, on its own."""
    key = SSlibKey.from_crypto(load_pem_public_key(Path(public).read_bytes()))
    try:
        return Envelope.from_dict(document or envelope()).verify([key], 1) == {key.keyid: key}
    except VerificationError:
        return False


def failed(report):
    return {check.name: check.note for check in report.checks if check.verdict == "fail"}


def flip(path, position=-1):
    data = bytearray(Path(path).read_bytes())
    data[position] ^= 1
    Path(path).write_bytes(data)


@pytest.mark.parametrize("kind", [("-algorithm", "ed25519"), *EC.values()], ids=["ed25519", *EC])
def test_a_statement_is_what_others_read(shipped, kind):
    make_keys("key.pem", "public.pem", *kind)
    made = attest()
    assert made
    assert is_signed_by("public.pem")
    assert [*envelope()] == ["payload", "payloadType", "signatures"]
    assert envelope()["payloadType"] == "application/vnd.in-toto+json"
    found = statement()
    assert found["_type"] == "https://in-toto.io/Statement/v1"
    assert found["predicateType"] == "https://in-toto.io/attestation/test-result/v0.1"
    assert {one["name"]: one["digest"] for one in found["subject"]} == {
        name: {"sha256": digest} for name, digest in shipped.files.items()
    }
    roles = {one["name"]: one["annotations"]["role"] for one in found["subject"]}
    assert roles == {MODEL: "model", DATA: "weights", **dict.fromkeys(GOLDEN, "golden data")}
    predicate = found["predicate"]
    assert predicate["result"] == "PASSED"
    assert predicate["passedTests"] == ["file/random nodes", "cpu/all/batch=1/worst error"]
    assert "failedTests" not in predicate
    (configuration,) = predicate["configuration"]
    said = subprocess.run(["sha256sum", "report.json"], capture_output=True, text=True, check=True).stdout.split()[0]
    assert (configuration["name"], configuration["digest"]) == ("report.json", {"sha256": said})
    assert configuration["annotations"]["environment"]["torch"] == "2.13.0"
    assert configuration["annotations"]["notRun"] == ["magnitudes"]
    assert configuration["annotations"]["notes"] == ["compared with old.onnx"]
    report = verify_attestation(OUT, "public.pem")
    assert report
    assert report.files == shipped.files
    assert [check.name for check in report.checks] == [
        *("signature", "statement", *(f"file/{name}" for name in FILES), "result")
    ]


def test_openssl_alone_verifies_the_signature(shipped):
    attest()
    payload = base64.b64decode(envelope()["payload"])
    kind = envelope()["payloadType"].encode()
    signed = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
    (shipped.folder / "signed").write_bytes(signed)
    (shipped.folder / "sig").write_bytes(base64.b64decode(envelope()["signatures"][0]["sig"]))
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", "public.pem", "-rawin", "-in", "signed"]
    assert subprocess.run([*command, "-sigfile", "sig"], check=False, capture_output=True).returncode == 0
    (shipped.folder / "signed").write_bytes(signed + b" ")
    assert subprocess.run([*command, "-sigfile", "sig"], check=False, capture_output=True).returncode != 0


def test_the_same_report_gives_the_same_bytes_in_one_line(shipped):
    attest()
    first = Path(OUT).read_text()
    attest()
    assert Path(OUT).read_text() == first
    assert first.count("\n") == 1


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_is_named(shipped, name):
    attest()
    assert verify_attestation(OUT, "public.pem")
    flip(name)
    report = verify_attestation(OUT, "public.pem")
    assert not report
    assert [*failed(report)] == [f"file/{name}"]
    assert f"it was {shipped.files[name]}" in failed(report)[f"file/{name}"]
    os.remove(name)
    assert "cannot be read: No such file" in failed(verify_attestation(OUT, "public.pem"))[f"file/{name}"]


@pytest.mark.parametrize("name", [MODEL, DATA])
def test_what_was_changed_since_it_was_verified_is_not_signed(shipped, name):
    flip(name)
    with pytest.raises(NotAttestableError, match=f"^{name} is not the file that was verified: .*nothing was signed"):
        attest()
    assert not os.path.exists(OUT)


def test_a_changed_model_and_changed_weights_are_both_named(shipped):
    flip(MODEL)
    flip(DATA)
    with pytest.raises(NotAttestableError, match=f"^{MODEL} is not the file .*; {DATA} is not the file"):
        attest()


def test_a_changed_payload_is_refused(shipped):
    shipped.write(checks=[FAILING])
    attest()
    assert statement()["predicate"]["result"] == "FAILED"
    changed = envelope()
    payload = base64.b64decode(changed["payload"]).replace(b'"FAILED"', b'"PASSED"')
    changed["payload"] = base64.b64encode(payload).decode()
    assert not is_signed_by("public.pem", json.loads(json.dumps(changed)))
    Path(OUT).write_text(json.dumps(changed))
    report = verify_attestation(OUT, "public.pem")
    assert not report
    assert [*failed(report)] == ["signature"]
    assert "the statement or its signature was changed" in failed(report)["signature"]
    assert (report.result, report.files) == ("", {})


def test_a_changed_signature_is_refused(shipped):
    attest()
    changed = envelope()
    signature = bytearray(base64.b64decode(changed["signatures"][0]["sig"]))
    signature[3] ^= 1
    changed["signatures"][0]["sig"] = base64.b64encode(signature).decode()
    assert not is_signed_by("public.pem", json.loads(json.dumps(changed)))
    Path(OUT).write_text(json.dumps(changed))
    assert "was changed" in failed(verify_attestation(OUT, "public.pem"))["signature"]


@pytest.mark.parametrize("kind", [("-algorithm", "ed25519"), EC["P-256"]], ids=["ed25519", "ECDSA"])
def test_another_key_is_refused(shipped, kind):
    attest()
    make_keys("other.pem", "other_public.pem", *kind)
    assert not is_signed_by("other_public.pem")
    assert "it is signed with another key" in failed(verify_attestation(OUT, "other_public.pem"))["signature"]
    # Nor does it help to write the other key's name into the envelope.
    changed = envelope()
    changed["signatures"][0]["keyid"] = SSlibKey.from_crypto(
        load_pem_public_key(Path("other_public.pem").read_bytes())
    ).keyid
    Path(OUT).write_text(json.dumps(changed))
    assert [*failed(verify_attestation(OUT, "other_public.pem"))] == ["signature"]


@pytest.mark.parametrize(
    ("checks", "result", "changes"),
    [
        ([WARNING], "WARNED", {}),
        ([FAILING], "FAILED", {}),
        ([Check(name="cuda", verdict="not_run", note="no GPU")], "FAILED", {}),
        ([], "FAILED", {"passed": False}),
        ([], "FAILED", {"own": []}),
        ([], "FAILED", {"providers": {"cpu": {"verdict": "fail"}}, "passed": False}),
    ],
    ids=["warning", "failed", "not run", "not passed", "nothing compared", "provider failed"],
)
def test_only_what_passed_is_attested_as_passed(shipped, checks, result, changes):
    shipped.write(checks=checks, **changes)
    made = attest()
    assert (made.result, bool(made)) == (result, result != "FAILED")
    predicate = statement()["predicate"]
    assert predicate["result"] == result
    blocking = [check.name for check in checks if check.blocks]
    assert predicate.get("failedTests", []) == blocking
    assert predicate.get("warnedTests", []) == (["file/metadata"] if result == "WARNED" else [])
    report = verify_attestation(OUT, "public.pem")
    assert bool(report) == (result != "FAILED")
    assert [*failed(report)] == ([] if report else ["result"])


def test_a_report_that_contradicts_itself_is_refused(shipped):
    shipped.write(checks=[FAILING], passed=True)
    with pytest.raises(LoadError, match="contradicts itself: it says that it passed, and one of its checks did not"):
        attest()
    shipped.write(providers={}, passed=True)
    with pytest.raises(LoadError, match="contradicts itself: it says that it passed, and nothing was run"):
        attest()
    assert not os.path.exists(OUT)


def test_what_says_a_thing_twice_is_refused(shipped):
    """Another reader takes the other one: a report that failed and one that passed in the same bytes."""
    report = Path("report.json").read_text()
    Path("report.json").write_text('{"passed": false, ' + report[1:])
    with pytest.raises(LoadError, match="is no report of this version: it says `passed` twice"):
        attest()
    Path("report.json").write_text(report)
    attest()
    Path(OUT).write_text('{"payload": "", ' + Path(OUT).read_text()[1:])
    with pytest.raises(LoadError, match="is no signed statement: it says `payload` twice"):
        verify_attestation(OUT, "public.pem")


def test_a_device_is_not_replaced(shipped):
    os.mkfifo("pipe")
    with pytest.raises(ValueError, match="--out is a device, a pipe or a folder, which is not replaced: 'pipe'"):
        attest_onnx(MODEL, "report.json", "key.pem", out="pipe")
    assert stat.S_ISFIFO(os.stat("pipe").st_mode)


def test_the_report_of_an_export_and_of_the_pipeline_will_do(shipped):
    shipped.write()
    values = json.loads(Path("report.json").read_text()) | {"kind": "export"}
    export = ExportReport.model_validate(values)
    os.mkdir("r")
    for report in (export, PipelineReport(export=export)):
        Path("r/report.json").write_text(report.model_dump_json())
        assert attest_onnx(MODEL, "r", "key.pem").result == "PASSED"
        assert [one["name"] for one in statement()["subject"]] == [MODEL, DATA]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"kind": "inspect", "passed": true}', "is a report of kind inspect; .* inspect runs nothing"),
        ('{"kind": "batchnorm", "verdict": "ok", "samples": 1}', "is a report of kind batchnorm"),
        ('{"kind": "pipeline"}', "nothing was exported"),
        ('{"kind": "verify"}', "is no report of this version"),
        ("[]", "is a report of kind None"),
        ("{", "is no report of this version"),
    ],
    ids=["inspect", "batchnorm", "empty pipeline", "no verdict", "list", "no JSON"],
)
def test_what_is_no_report_of_a_verification_is_refused(shipped, content, said):
    Path("report.json").write_text(content)
    with pytest.raises(LoadError, match=said):
        attest()


def test_a_report_without_the_hash_of_what_was_verified_is_refused(shipped):
    shipped.write(sha256="")
    with pytest.raises(
        NotAttestableError, match="the report holds no sha256: an export that did not pass publishes no"
    ):
        attest()
    shipped.write(data_files={}, data_sha256={})  # as the replay in C++ writes it
    with pytest.raises(NotAttestableError, match=f"the report does not say which {DATA} was verified"):
        attest()


def test_golden_data_lie_where_they_are_found_again(shipped, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    with pytest.raises(LoadError, match="must lie in the folder of the ONNX file"):
        attest(golden=elsewhere)
    (shipped.folder / "empty").mkdir()
    for name in ("empty", "missing"):
        with pytest.raises(LoadError, match=f"--golden {name} holds no golden data"):
            attest(golden=name)


def test_a_renamed_model_is_found_by_its_argument(shipped, tmp_path_factory):
    attest(out="proof.jsonl")
    os.rename(MODEL, "renamed.onnx")
    assert [*failed(verify_attestation("proof.jsonl", "public.pem"))] == [f"file/{MODEL}"]
    assert verify_attestation("proof.jsonl", "public.pem", "renamed.onnx")
    other = tmp_path_factory.mktemp("other") / "model.onnx"
    os.rename("renamed.onnx", other)
    assert [*failed(verify_attestation("proof.jsonl", "public.pem", other))] == [f"file/{name}" for name in FILES[1:]]


def signed(shipped, change):
    """A statement that is signed with the right key and that another writer made."""
    from jumpout_export.attest.envelope import sign
    from jumpout_export.attest.keys import load_signer

    attest()
    found = statement()
    change(found)
    Path(OUT).write_text(sign(json.dumps(found).encode(), load_signer(shipped.folder / "key.pem")))
    return failed(verify_attestation(OUT, "public.pem"))


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b", "..\\b"])
def test_files_outside_of_the_folder_are_not_opened(shipped, name):
    found = signed(shipped, lambda it: it["subject"].append({"name": name, "digest": {"sha256": "0"}}))
    assert [*found] == ["statement"]
    assert "names files outside of the model's folder, which are not opened" in found["statement"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda it: it.update(predicateType="https://slsa.dev/provenance/v1"), "a statement of another kind"),
        (lambda it: it.update(_type="https://example.org"), "no in-toto statement: Wrong statement type"),
        (lambda it: it.update(subject=[]), "no in-toto statement: At least one subject required"),
        (lambda it: it["predicate"].update(result="GREEN"), "no result that is known: 'GREEN'"),
        (lambda it: [one.pop("annotations") for one in it["subject"]], "does not say which of its files is the ONNX"),
    ],
    ids=["predicate", "type", "no subject", "result", "no model"],
)
def test_a_statement_of_another_kind_is_refused(shipped, change, said):
    assert said in signed(shipped, change)["statement"]


def test_fields_that_are_unknown_are_ignored_as_in_toto_wants_it(shipped):
    assert signed(shipped, lambda it: (it.update(new=1), it["predicate"].update({"https://new": 2}))) == {}


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"payload": 1}', "{}\n{}\n"], ids=str)
def test_what_is_no_envelope_is_refused(shipped, text):
    Path(OUT).write_text(text)
    with pytest.raises(LoadError, match="is no signed statement"):
        verify_attestation(OUT, "public.pem")


def test_keys_of_other_kinds_are_refused_and_never_shown(shipped):
    make_keys("rsa.pem", "rsa_public.pem", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048")
    make_keys("k1.pem", "k1_public.pem", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:secp256k1")
    Path("text.pem").write_text("secret words")
    for key, said in (
        ("rsa.pem", "--key rsa.pem must be ed25519, or ECDSA on P-256, P-384 or P-521; it is of another kind"),
        ("k1.pem", "--key k1.pem must be ed25519"),
        ("text.pem", "--key text.pem holds no private key in PEM format; make a pair with openssl genpkey"),
        ("public.pem", "--key public.pem holds no private key"),
        ("missing.pem", "--key missing.pem cannot be read: No such file"),
    ):
        with pytest.raises(LoadError) as error:
            attest_onnx(MODEL, "report.json", key)
        assert str(error.value).startswith(said)
        assert "secret" not in str(error.value)
    attest()
    for key, said in (
        ("rsa_public.pem", "--public-key rsa_public.pem must be ed25519"),
        ("key.pem", "--public-key key.pem holds a private key, which only who signs needs"),
        ("text.pem", "--public-key text.pem holds no public key"),
    ):
        with pytest.raises(LoadError) as error:
            verify_attestation(OUT, key)
        assert str(error.value).startswith(said)


def test_an_encrypted_key_takes_its_password_from_the_environment(shipped, monkeypatch):
    command = ["openssl", "pkey", "-in", "key.pem", "-aes256", "-passout", "pass:hunter2", "-out", "locked.pem"]
    subprocess.run(command, check=True, capture_output=True)
    with pytest.raises(LoadError, match=f"is encrypted: put its password into the environment variable {PASSWORD}"):
        attest_onnx(MODEL, "report.json", "locked.pem")
    monkeypatch.setenv(PASSWORD, "hunter3")
    with pytest.raises(LoadError, match=f"or the password in {PASSWORD} is another") as error:
        attest_onnx(MODEL, "report.json", "locked.pem")
    assert "hunter3" not in str(error.value)
    monkeypatch.setenv(PASSWORD, "hunter2")
    assert attest_onnx(MODEL, "report.json", "locked.pem")
    assert is_signed_by("public.pem")
    assert attest()  # a key without a password takes no notice of it


def test_nothing_of_the_private_key_is_written(shipped, run):
    code, out, err = run("attest", MODEL, "--report", "report.json", "--key", "key.pem", "--golden", "golden")
    assert code == 0
    secret = Path("key.pem").read_text().splitlines()[1]
    raw = base64.b64decode(secret)[-32:]
    written = Path(OUT).read_text()
    for text in (out, err, written, json.dumps(statement())):
        assert secret not in text
        assert raw.hex() not in text
        assert base64.b64encode(raw).decode() not in text


def test_what_is_read_is_not_written_over(shipped):
    before = {name: Path(name).read_bytes() for name in (MODEL, "key.pem", "report.json", DATA)}
    for name in before:
        with pytest.raises(LoadError, match=f"--out {name} would be written over {name}, which is read"):
            attest(out=name)
    os.symlink(MODEL, "link.jsonl")
    with pytest.raises(ValueError, match="--out is a symbolic link"):
        attest(out="link.jsonl")
    with pytest.raises(ValueError, match="the folder of --out does not exist"):
        attest(out="nowhere/a.jsonl")
    assert {name: Path(name).read_bytes() for name in before} == before
