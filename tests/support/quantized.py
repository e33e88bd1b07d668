"""The demo's network on the digits, trained a little, and its quantized file with changes made to it."""

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import numpy_helper

from jumpout_export import demo, recalibrate_batchnorm
from jumpout_export.demo import batches, load_digits

EPOCHS, SAMPLES = 4, 768


def trained_digits():
    """The network in eval mode, with calibration batches of training images and labelled batches of all images."""
    images = load_digits(0)
    torch.manual_seed(0)
    model = demo.network(1, images.classes)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(SAMPLES).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images.train[chosen]), images.train_labels[chosen]).backward()
            optimizer.step()
    calibration = batches(images.train[:256], images.train_labels[:256])
    recalibrate_batchnorm(model, calibration)
    labelled = batches(torch.cat([images.test, images.train]), torch.cat([images.test_labels, images.train_labels]))
    return model.eval(), calibration, labelled


def array_of(proto, name):
    return numpy_helper.to_array(next(one for one in proto.graph.initializer if one.name == name)).copy()


def put(proto, name, array):
    tensor = next(one for one in proto.graph.initializer if one.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(array, dtype=array_of(proto, name).dtype), name))


def changed(path, folder, edit):
    """A copy of a file with an edit of its protobuf."""
    proto = onnx.load(path)
    edit(proto)
    target = folder / "changed.onnx"
    target.write_bytes(proto.SerializeToString())
    return target


def blocking(report):
    return {check.name: check for check in report.checks if check.blocks}
