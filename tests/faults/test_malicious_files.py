"""Files that hold code instead of values: it is not run."""

from __future__ import annotations

import os

import pytest

import ragst_sd as rg


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mknod, (str(self.path),)


def test_recipes_are_plain_values(tmp_path):
    recipe = tmp_path / "evil.yaml"
    recipe.write_text(f"version: 1\nname: !!python/object/apply:os.mknod ['{tmp_path / 'ran'}']\nsources: []\n")
    with pytest.raises(ValueError, match=r"evil\.yaml, line 2: this is not YAML"):
        rg.io.build_recipe(recipe, path=tmp_path / "r.zarr.zip")
    assert not (tmp_path / "ran").exists()


def test_weights_of_conch_are_looked_at_before_its_package_loads_them(tmp_path, monkeypatch):
    import sys
    from types import ModuleType

    import torch

    from ragst_sd.image.resolve_encoder import resolve_encoder

    package = ModuleType("conch.open_clip_custom")
    package.create_model_from_pretrained = lambda name, checkpoint_path: torch.load(checkpoint_path, weights_only=False)
    monkeypatch.setitem(sys.modules, "conch", ModuleType("conch"))
    monkeypatch.setitem(sys.modules, "conch.open_clip_custom", package)
    torch.save({"weights": Evil(tmp_path / "ran")}, tmp_path / "conch.bin")
    with pytest.raises(ValueError, match=r"'conch' could not be read.*weights_only=True"):
        resolve_encoder("conch", model_kwargs={"checkpoint_path": tmp_path / "conch.bin"}, device="cpu")
    assert not (tmp_path / "ran").exists()
