"""What the tests of this folder share: the results of the workers, and how two are compared."""

from typing import Any

import torch

Results = list[dict[str, Any]]
CONFIGS = ("factored 8", "factored 4", "block 8")


def assert_same(ours: dict[str, Any], expected: dict[str, Any]) -> None:
    """Parameters and state (`models.everything`) are equal bit for bit, dtypes included."""
    assert ours["parameters"].keys() == expected["parameters"].keys()
    for name, param in expected["parameters"].items():
        assert torch.equal(ours["parameters"][name], param), name
        assert ours["state"][name].keys() == expected["state"][name].keys()
        for key, value in expected["state"][name].items():
            assert ours["state"][name][key].dtype == value.dtype, (name, key)
            assert torch.equal(ours["state"][name][key], value), (name, key)
