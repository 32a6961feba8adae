"""Settings are refused before any work, by the ranges in their types."""

from dataclasses import dataclass, field
from typing import Literal

import pytest

from tenfold.catalog import SYSTEMS, find_system
from tenfold.cli.arguments import parse_run
from tenfold.errors import UserError
from tenfold.settings import PositiveFloat, PositiveInt, Share, check_settings
from tenfold.training.options import TrainerOptions


@dataclass
class Optimizer:
    rate: PositiveFloat = 0.1
    smoothing: Share = 0.0


@dataclass
class Settings:
    epochs: PositiveInt = 1
    widths: list[PositiveInt] = field(default_factory=lambda: [1])
    kind: Literal["a", "b"] = "a"
    clip: PositiveFloat | None = None
    optimizer: Optimizer = field(default_factory=Optimizer)
    trainer: TrainerOptions = field(default_factory=TrainerOptions)

    def check(self):
        if self.kind == "b" and self.epochs < 2:
            raise UserError("kind b needs two epochs")


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (Settings(epochs=0), "epochs must be greater than 0; got 0"),
        (Settings(widths=[4, 0]), "widths.1 must be greater than 0; got 0"),
        (Settings(kind="c"), "kind must be 'a' or 'b'; got 'c'"),
        (Settings(clip=-1.0), "clip must be greater than 0; got -1.0"),
        (Settings(optimizer=Optimizer(rate=float("nan"))), "optimizer.rate must be a finite number; got nan"),
        (Settings(optimizer=Optimizer(smoothing=2)), "optimizer.smoothing must be less than or equal to 1; got 2"),
        (Settings(optimizer=None), "optimizer"),
        (Settings(trainer=TrainerOptions(devices=0)), "trainer.devices must be greater than 0; got 0"),
        (Settings(kind="b"), "kind b needs two epochs"),
    ],
)
def test_a_setting_out_of_its_range_is_named_with_what_it_is(settings, line):
    with pytest.raises(UserError) as refused:
        check_settings(settings)
    assert line in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ("budget=2", "budget must be less than or equal to 1; got 2"),
        ("optimizer.momentum=1", "optimizer.momentum must be less than 1; got 1"),
        ("data.validation=0", "data.validation must be greater than 0; got 0"),
        ("workers=[]", "workers must be a whole number; got []"),
        ("optimizer.epochs=1.5", "optimizer.epochs must be a whole number; got 1.5"),
        ("optimizer={epochs: 0}", "optimizer.epochs must be greater than 0; got 0"),
        ("method.reweight=[0.5, 2]", "method.reweight must be less than or equal to 1; got 2"),
        ("method.rescale=maybe", "method.rescale must be true or false; got 'maybe'"),
        ("model.mode=x", "model.mode must be 'joint', 'heads' or 'finetune'; got 'x'"),
        ("arms=3", "arms must be a list; got 3"),
        ("model.arguments=3", "model.arguments must be a table of names and values; got 3"),
    ],
)
def test_the_command_line_says_the_same_with_the_bound(option, line):
    with pytest.raises(UserError) as refused:
        parse_run(find_system("boosted-exits"), [f"--{option}"])
    assert str(refused.value) == line


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.id)
def test_every_preset_passes_its_own_checks(system):
    for name, preset in system.settings.PRESETS.items():
        assert preset.preset == name
        try:
            check_settings(preset)
        except UserError as error:  # data that the reader has: the preset cannot name their folder
            assert "--data.root" in str(error), name
