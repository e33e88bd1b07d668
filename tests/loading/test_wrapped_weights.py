"""What a wrapper put before every name of a state dict goes; what the model's own names begin with stays."""

import pytest
import torch
from torch import nn

from jumpout_export.errors import LoadError
from jumpout_export.loading import load_weights


class Holder(nn.Module):
    """A network of the user's in a submodule that is called as a wrapper's."""

    def __init__(self, name):
        super().__init__()
        self.add_module(name, nn.Linear(3, 2))


@pytest.mark.parametrize("before", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("name", ["layer", "module", "_orig_mod"])
def test_the_weights_of_a_wrapped_model_load(tmp_path, before, name):
    source, target = Holder(name), Holder(name)
    torch.save({f"{before}{key}": value for key, value in source.state_dict().items()}, tmp_path / "w.pt")
    load_weights(target, tmp_path / "w.pt")
    assert torch.equal(source.get_submodule(name).weight, target.get_submodule(name).weight)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("module.a", "b"), "not in the model: b, module.a"),
        (("module.a", "module.b"), "not in the model: a, b"),
        (("network.weight", "network.bias"), "not in the model: network.bias, network.weight"),
    ],
)
def test_what_is_no_wrappers_name_is_named(tmp_path, names, message):
    torch.save({name: torch.ones(1) for name in names}, tmp_path / "w.pt")
    with pytest.raises(LoadError, match=message):
        load_weights(nn.Linear(3, 2), tmp_path / "w.pt")
