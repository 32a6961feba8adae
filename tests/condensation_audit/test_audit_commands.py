"""The verbs audit and calibrate as a user meets them."""

import json

import pytest
from planted import digit_data

from tenfold.errors import UserError
from tenfold.systems.condensation_audit.audit_commands import audit, calibrate
from tenfold.systems.condensation_audit.condensing import condense
from tenfold.systems.condensation_audit.naive_attack import NaiveAttack
from tenfold.systems.condensation_audit.set_files import save_set
from tenfold.systems.condensation_audit.sets import TrainingRecipe
from tenfold.systems.condensation_audit.triggers import white_patch

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
        audit(str(poisoned), data="digits", networks=2, published=False, repairs=False, out=str(out))
    found = json.loads((out / "audit.json").read_text(encoding="utf-8"))
    assert left.value.code == found["exit_code"] == 11 and found["verdict"] == "backdoored"
    printed = capsys.readouterr().out
    assert printed.startswith("backdoored: A 2 x 2 patch") and "not tested: " in printed and "marks it" in printed
    assert "<html" in (out / "report.html").read_text(encoding="utf-8")


def test_wrong_input_is_one_line_and_writes_nothing(poisoned, tmp_path):
    out = str(tmp_path / "audit")
    wrong = [
        ({}, "name either"),
        ({"set": str(poisoned), "model": "x"}, "name either"),
        ({"set": str(tmp_path / "none.cset")}, ""),
        ({"model": str(tmp_path)}, ""),
        ({"set": str(poisoned), "data": "digits", "validation": 1}, "at least 2"),
        ({"set": str(poisoned), "data": "digits", "calibration": str(tmp_path / "none")}, "cannot read"),
    ]
    for arguments, message in wrong:
        with pytest.raises(UserError, match=message):
            audit(**arguments, out=out)
    assert not (tmp_path / "audit").exists()
    with pytest.raises(UserError, match="no training recipe"):
        calibrate(str(tmp_path / "c.json"), recipe={"epoch": 3})
