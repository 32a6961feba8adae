"""The verbs audit and calibrate as a user meets them."""

import json

import pytest
from planted import digit_data

from tenfold.cli import main
from tenfold.errors import UserError
from tenfold.systems.condensation_audit.attacks.naive_attack import NaiveAttack
from tenfold.systems.condensation_audit.attacks.triggers import white_patch
from tenfold.systems.condensation_audit.cli.auditing import audit, calibrate
from tenfold.systems.condensation_audit.cli.options import CleanChoice, Condensing, DataChoice
from tenfold.systems.condensation_audit.condensers.condense import condense
from tenfold.systems.condensation_audit.sets.condensed_set import TrainingRecipe
from tenfold.systems.condensation_audit.sets.files import save_set

ARGUMENTS = {"width": 16, "depth": 2}
RECIPE = TrainingRecipe("convnet", ARGUMENTS, epochs=60, learning_rate=0.05, batch_size=256)


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory):
    attack = NaiveAttack(0.2, 4, 2, white_patch((1, 8, 8), 2, 3, 6))
    made = condense(digit_data(slice(0, 1197)), "random", 10, network_arguments=ARGUMENTS, recipe=RECIPE, attack=attack)
    path = tmp_path_factory.mktemp("sets") / "poisoned.cset"
    save_set(path, made)
    return path


def test_the_verdict_is_the_exit_code(poisoned, tmp_path, capsys):
    out = tmp_path / "audit"
    with pytest.raises(SystemExit) as left:
        audit(str(poisoned), CleanChoice("digits"), networks=2, published=False, repairs=False, out=str(out))
    found = json.loads((out / "audit.json").read_text(encoding="utf-8"))
    assert left.value.code == found["exit_code"] == 11 and found["verdict"] == "backdoored"
    printed = capsys.readouterr().out
    assert printed.startswith("backdoored: A 2 x 2 patch") and "not tested: " in printed and "marks it" in printed
    assert "<html" in (out / "report.html").read_text(encoding="utf-8")


def test_the_command_line_takes_a_set_by_its_place(poisoned, tmp_path, capsys):
    options = ["--data", "digits", "--networks", "2", "--published", "false", "--repairs", "false"]
    out = tmp_path / "audit"
    assert main(["condensation-audit", "audit", str(poisoned), *options, "--out", str(out)]) == 11
    assert capsys.readouterr().out.startswith("backdoored")
    assert main(["condensation-audit", "audit", str(tmp_path / "none.cset"), *options]) == 2


def test_wrong_input_is_one_line_and_writes_nothing(poisoned, tmp_path):
    out = str(tmp_path / "audit")
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.json").write_text("{}", encoding="utf-8")
    digits = CleanChoice("digits")
    wrong = [
        ({"subject": str(tmp_path / "none.cset")}, "none.cset"),
        ({"subject": str(model), "clean": digits}, "not a model's manifest"),
        ({"subject": str(poisoned), "clean": CleanChoice("digits", validation=1)}, "at least 2"),
        (
            {"subject": str(poisoned), "clean": digits, "calibration": str(tmp_path / "none")},
            "cannot read",
        ),
    ]
    for arguments, message in wrong:
        with pytest.raises(UserError, match=message):
            audit(**({"clean": CleanChoice()} | arguments), out=out)
    assert not (tmp_path / "audit").exists()
    with pytest.raises(UserError, match="no training recipe"):
        calibrate(DataChoice(), Condensing(recipe={"epoch": 3}), out=str(tmp_path / "c.json"))
