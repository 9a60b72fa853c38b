"""Families are found by their files: the example of the README, in a copy of the tree."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from harness.config import ModelConfig
from harness.config.groups import load_group
from harness.errors import UserError
from harness.models import check
from harness.models.families import names

ROOT = Path(__file__).parents[3]
README = ROOT / "harness/models/README.md"


def example() -> tuple[str, str]:
    """Path and text of the family that the README adds."""
    ((path, text),) = re.findall(r"```python\n# (\S+)\n(.*?)```", README.read_text(), re.DOTALL)
    return path, text


def test_a_new_file_is_a_family_without_torch_or_transformers(tmp_path: Path) -> None:
    """A new process, which imports from the copy; it takes no torch, so a fraction of a second."""
    shutil.copytree(ROOT / "harness", tmp_path / "harness", ignore=shutil.ignore_patterns("__py*"))
    path, text = example()
    (tmp_path / path).write_text(text)
    code = (
        "import sys\n"
        "from harness.config import FAMILIES, ROTARY_FAMILIES, ModelConfig\n"
        "from harness.models import check\n"
        "assert {'mistral', 'llama'} <= set(ROTARY_FAMILIES) < set(FAMILIES), FAMILIES\n"
        "check(ModelConfig(family='mistral', kv_heads=2))\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
        "check(ModelConfig(family='mistral', experts=2))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last.endswith("model.experts=2 is not possible for family mistral; set it to null.")


def test_the_example_of_the_readme_builds_its_model() -> None:
    scope: dict[str, object] = {}
    exec(compile(example()[1], "mistral", "exec"), scope)
    shape = ModelConfig(**{**load_group("model", "llama_tiny"), "intermediate_size": 96})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(scope["build"](shape, 64))  # type: ignore[operator]
    hidden, inner = shape.hidden_size, 96
    kv = (shape.kv_heads or shape.heads) * hidden // shape.heads
    layer = 2 * hidden**2 + 2 * hidden * kv + 3 * hidden * inner + 2 * hidden
    tables = 64 * hidden * (1 if shape.tie_embeddings else 2)
    assert model.num_parameters() == tables + shape.layers * layer + hidden


@pytest.mark.parametrize("family", names())
def test_a_key_that_a_family_does_not_have_is_refused(family: str) -> None:
    shape = load_group("model", {"vit": "vit_digits"}.get(family, f"{family}_tiny"))
    check(ModelConfig(**shape))
    taken = {"mixtral": {"experts": 8}, "vit": {"image_size": 8}}.get(family, {})
    for key, value in {"experts": 8, "image_size": 8}.items():
        config = ModelConfig(**{**shape, key: value})
        if key in taken:
            check(config)
            continue
        with pytest.raises(UserError, match=f"model.{key}=8 is not possible for family {family}"):
            check(config)
