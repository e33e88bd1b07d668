"""Reads what the command line names: networks, weights and data."""

from jumpout_export.loading.data import ImageFolder, load_data, random_batches, share_of
from jumpout_export.loading.groups import with_groups
from jumpout_export.loading.images import read_image
from jumpout_export.loading.network import load_model, load_weights, save_weights

__all__ = [
    "ImageFolder",
    "load_data",
    "load_model",
    "load_weights",
    "random_batches",
    "read_image",
    "save_weights",
    "share_of",
    "with_groups",
]
