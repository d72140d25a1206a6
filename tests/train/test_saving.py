"""What a saved folder holds, and that it appears whole or not at all; loading is tested in ``tests/test_saved.py``."""

import json

import pytest
import torch
from torch import nn

import heldout
from heldout.train import read_saved, save
from heldout.train.saving import why_not_exported

DATA = (torch.randn(24, 3, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 2)


@pytest.fixture
def fitted():
    return heldout.fit(lambda: nn.Linear(3, 2), DATA, epochs=1, seed=4)


def test_the_recipe_says_how_it_was_made_and_what_else_is_given(fitted, tmp_path):
    recipe = fitted.save(tmp_path / "a" / "mine", {"method": "none", "why": ["a", 1]}, {"how.txt": "by hand"})
    kept = tmp_path / "a" / "mine"
    assert json.loads((kept / "recipe.json").read_text()) == recipe
    assert (kept / "how.txt").read_text() == "by hand"
    assert {key: recipe[key] for key in ("seed", "epochs", "batch_size", "task", "num_classes", "why")} == {
        "seed": 4, "epochs": 1, "batch_size": 64, "task": "classification", "num_classes": 2, "why": ["a", 1],
    }  # fmt: skip
    assert recipe["structure"] == {"": ["Linear", {"in_features": 3, "out_features": 2, "bias": True}]}
    saved = read_saved(kept)
    assert saved.recipe == recipe
    assert torch.equal(saved.weights["weight"], fitted.module.weight)
    assert saved.tensors == {}


def test_a_folder_is_replaced_whole_and_foreign_ones_are_left_alone(fitted, tmp_path):
    save(fitted, tmp_path / "mine", texts={"old.txt": ""})
    save(fitted, tmp_path / "mine")
    assert {file.name for file in (tmp_path / "mine").iterdir()} == {"module.safetensors", "recipe.json"}
    with pytest.raises(ValueError, match="about must hold what JSON does"):
        save(fitted, tmp_path / "mine", {"object": object()})
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="holds something else"):
        save(fitted, tmp_path / "other")
    assert (tmp_path / "other" / "thesis.tex").exists()


def test_tied_weights_are_kept(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(self.first(x))[:, :2]

    fitted = heldout.fit(Tied, DATA, epochs=1)
    fitted.save(tmp_path / "tied")
    again = heldout.load(tmp_path / "tied", Tied)
    assert again.module.second.weight is again.module.first.weight
    assert torch.equal(again.predict(DATA[0]), fitted.predict(DATA[0]))


def test_a_plain_model_is_exported_for_batches_of_any_size(fitted, tmp_path):
    recipe = fitted.save(tmp_path / "mine", export=True)
    assert recipe["export"] == {"file": "module.pt2", "reason": ""}
    program = torch.export.load(tmp_path / "mine" / "module.pt2").module()
    for size in (1, 2, 7):
        torch.testing.assert_close(program(DATA[0][:size]), fitted.predict(DATA[0][:size]))


def test_models_with_several_inputs_are_exported(tmp_path):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3, 2)

        def forward(self, values, scale):
            return {"logits": self.head(values * scale)}

    examples = [{"values": x, "scale": x[:1], "labels": y} for x, y in zip(*DATA, strict=True)]
    fitted = heldout.fit(Named, examples, epochs=1)
    assert why_not_exported(fitted, tmp_path / "a.pt2") == ""
    program = torch.export.load(tmp_path / "a.pt2").module()
    expected = fitted.predict({"values": DATA[0], "scale": DATA[0][:, :1]})
    torch.testing.assert_close(program(DATA[0], DATA[0][:, :1]), expected)


class Odd(nn.Linear):
    def forward(self, x):
        if float(x.sum().detach().numpy()) > 1e9:
            raise ValueError
        return super().forward(x)


def test_it_is_said_why_a_model_is_not_exported(tmp_path):
    fitted = heldout.fit(lambda: nn.Linear(3, 2), DATA, heldout.methods.t3a(), epochs=1)
    assert fitted.save(tmp_path / "t3a", export=True)["export"] == {
        "file": None, "reason": "it has a test-time stage, which an exported module would lack",
    }  # fmt: skip
    odd = heldout.fit(lambda: Odd(3, 2), DATA, epochs=1)
    assert why_not_exported(odd, tmp_path / "odd.pt2").startswith("torch.export cannot take it: ")
    assert not (tmp_path / "odd.pt2").exists()


class Counting(nn.Linear):
    def forward(self, x):
        return super().forward(x) + torch.zeros(int((x[:, 0] > 0).sum()) + 1, 1).sum()


def test_a_failing_export_prints_nothing(tmp_path, capfd):
    fitted = heldout.fit(lambda: Counting(3, 2), DATA, epochs=1)
    assert why_not_exported(fitted, tmp_path / "odd.pt2").startswith("torch.export cannot take it: ")
    assert capfd.readouterr() == ("", "")
