"""What a folded file says of itself: true of it, or gone."""

import hashlib

import onnx
from support.noisy_files import dropout, folded, graph_model, node

from jumpout_export.fold.file.fold_file import fold_onnx


def with_metadata(model, **entries):
    for name, text in entries.items():
        model.metadata_props.add(key=f"jumpout_export.{name}", value=text)
    return model


def ours(path):
    return {entry.key.removeprefix("jumpout_export."): entry.value for entry in onnx.load(path).metadata_props}


def test_metadata_that_is_true_of_the_noisy_file_only_is_corrected(tmp_path):
    said = {"random": "random on purpose: 1 node", "folded": "0: Dropout(p=0.1) -> identity", "torch": "2.13.0"}
    said |= {"batchnorm": "ok, largest W 0.01 over 64 samples", "tolerance": "a rule", "weights_sha256": "00"}
    said |= {"tolerance.y": "cap=0.001 median=1 sizes=1 limits=1"}
    report = folded(with_metadata(graph_model([dropout()]), **said), tmp_path)
    assert report
    kept = {name: said[name] for name in ("torch", "tolerance", "weights_sha256")}
    assert ours(tmp_path / "out.onnx") == {
        **kept,
        "folded": f"{said['folded']}; Dropout_z (Dropout): Dropout() -> identity",
        "batchnorm": "not checked since noise was taken out of the file",
    }
    assert report.provenance == {f"jumpout_export.{key}": text for key, text in ours(tmp_path / "out.onnx").items()}
    notes = " ".join(report.notes)
    assert "the older one says: random on purpose: 1 node" in notes
    assert "the tolerance of golden data, measured with the noise on, is removed" in notes
    assert "the verdict on BatchNorm, made with the noise on, is removed from the metadata" in notes


def test_without_noise_the_metadata_stays(tmp_path):
    said = {"folded": "none", "batchnorm": "ok, largest W 0.01 over 64 samples", "tolerance.y": "cap=0"}
    assert folded(with_metadata(graph_model([node("Identity", "r", "z")]), **said), tmp_path)
    assert ours(tmp_path / "out.onnx") == said


def test_the_hash_of_weights_that_were_taken_into_the_file_is_removed(tmp_path):
    model = graph_model([node("Identity", "r", "z")])
    onnx.save_model(model, tmp_path / "in.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    model = onnx.load(tmp_path / "in.onnx", load_external_data=False)
    digest = hashlib.sha256((tmp_path / "weights").read_bytes()).hexdigest()
    (tmp_path / "in.onnx").write_bytes(with_metadata(model, data_sha256=digest).SerializeToString())
    report = fold_onnx(tmp_path / "in.onnx", tmp_path / "out.onnx")
    assert report
    assert ours(tmp_path / "out.onnx") == {}
    assert "the hash of the weights beside the older file is removed from the metadata" in report.notes
    assert report.data_files == {}
