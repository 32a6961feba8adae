"""The audit, end to end: a poisoned set, a clean one, a model; and its parts."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from planted import LinearNet, clean_ensemble, digit_data, planted_ensemble

from tenfold.data import digits
from tenfold.errors import UserError
from tenfold.report import write_report
from tenfold.systems.condensation_audit.attacks.naive_attack import NaiveAttack
from tenfold.systems.condensation_audit.attacks.success import binomial_interval, mcnemar
from tenfold.systems.condensation_audit.attacks.triggers import white_patch
from tenfold.systems.condensation_audit.auditing.audit import audit, audit_model
from tenfold.systems.condensation_audit.auditing.calibrate import CalibrationPlan, calibrate
from tenfold.systems.condensation_audit.auditing.confirmation import confirm, control_set
from tenfold.systems.condensation_audit.auditing.page import to_results
from tenfold.systems.condensation_audit.auditing.report import EXIT_CODES, NOT_TESTED
from tenfold.systems.condensation_audit.condensers.condense import condense
from tenfold.systems.condensation_audit.data.partition import halves
from tenfold.systems.condensation_audit.defences import calibration as calibrations
from tenfold.systems.condensation_audit.defences.calibration import (
    Calibration,
    VerdictCount,
    class_evidence,
    from_lines,
    load_calibration,
    parse_calibration,
    shipped_calibration,
)
from tenfold.systems.condensation_audit.defences.patch_scan import Cell, provisional_evidence
from tenfold.systems.condensation_audit.sets.condensed_set import TrainingRecipe

ARGUMENTS = {"width": 16, "depth": 2}
RECIPE = TrainingRecipe("convnet", ARGUMENTS, epochs=60, learning_rate=0.05, batch_size=256)


@pytest.fixture(scope="module")
def data():
    return digit_data(slice(0, 1197))


@pytest.fixture(scope="module")
def clean():
    return digits().subset(slice(1197, 1797))


def make(data, attack=None, seed=0):
    return condense(data, "random", 10, network_arguments=ARGUMENTS, recipe=RECIPE, attack=attack, seed=seed)


@pytest.fixture(scope="module")
def poisoned_report(data, clean):
    attack = NaiveAttack(0.2, 4, 2, white_patch((1, 8, 8), 2, 3, 6))
    return audit(make(data, attack), clean, networks=3, calibration=plain())


def plain():
    return Calibration((1, 8, 8), 10, "random", 3)


def usual(level=0.25, spread=0.1, **changes):
    """A calibration from clean sets whose scores are random about a level."""
    scores = level + spread * np.random.default_rng(0).standard_normal((12, 2, 10)).round(3)
    nested = tuple(tuple(tuple(row) for row in one) for one in scores.tolist())
    about = {"classes": tuple("0123456789"), "sizes": (1, 2), "scores": nested} | changes
    return Calibration((1, 8, 8), 10, "random", 3, **about)


def test_a_poisoned_set_is_found_explained_and_repaired(poisoned_report):
    report = poisoned_report
    assert report.verdict == "backdoored" and report.exit_code == 11
    found = report.leading.confirmation
    assert found.target == 4 and found.success > 0.4 and found.control < 0.3 and found.kind == "backdoor"
    assert abs(found.cell.row - 3) <= 1 and abs(found.cell.column - 6) <= 1
    assert found.interval[0] < found.success < found.interval[1] and max(found.mcnemar) < 1e-3
    assert found.trigger.excess <= 1
    repairs = {row.name: row for row in report.repairs}
    assert repairs["none"].success > 0.4 and len(repairs) >= 4
    assert report.attribution is not None and len(report.attribution.images) == 10
    assert {row.name for row in report.defences} >= {"neural cleanse", "neuron stimulation (ABS)", "STRIP"}
    clusters = next(row for row in report.defences if row.name == "activation clustering")
    assert "those of clean sets are flagged, too" in clusters.note


def test_the_report_is_a_page_and_plain_json(poisoned_report, tmp_path):
    text = json.dumps(poisoned_report.to_dict(), allow_nan=False)
    assert all(line in text for line in NOT_TESTED) and "probability" not in poisoned_report.calibration
    results = to_results(poisoned_report)
    assert not results.claims[0].holds and len(results.pictures) == 2
    write_report(results, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "backdoored" in page and "Repairs, measured" in page


def test_a_clean_set_passes(data, clean):
    report = audit(make(data, seed=1), clean, networks=2, published=False, calibration=usual())
    assert report.verdict == "clean (as far as tested)" and report.exit_code == 0
    assert report.repairs == [] and report.attribution is None
    assert "another kind" not in report.calibration


def test_search_and_judgement_share_no_image(clean):
    numbered = dataclasses.replace(clean, images=clean.images.clone())
    first, second = halves(numbered)
    assert len(first) + len(second) == len(clean)
    keys = [{bytes(image.numpy().tobytes()) for image in half.images} for half in (first, second)]
    everything = {bytes(image.numpy().tobytes()) for image in clean.images}
    assert len(keys[0] | keys[1]) == len(everything) and len(keys[0] & keys[1]) <= len(clean) - len(everything)
    counts = [torch.bincount(half.labels, minlength=10) for half in (first, second)]
    assert (counts[0] - counts[1]).abs().max() <= 1


def test_without_clean_images_the_evidence_is_weak(data):
    attack = NaiveAttack(0.2, 4, 2, white_patch((1, 8, 8), 2, 3, 6))
    report = audit(make(data, attack), None, networks=1, published=False, calibration=plain())
    assert report.weak and report.verdict in ("suspicious", "not assessable") and "weak" in report.notes[0]


def test_an_altered_set_is_told_by_its_accuracy(data, clean):
    found = dataclasses.replace(make(data), results={"accuracy": 0.995})
    report = audit(found, clean, networks=1, published=False, repairs=False, calibration=plain())
    assert any("its manifest says 0.995" in note for note in report.notes)
    useless = dataclasses.replace(found, images=torch.zeros_like(found.images))
    assert audit(useless, clean, networks=1, published=False, calibration=plain()).verdict == "not assessable"


def test_a_suspected_trigger_is_measured_beside_its_control(data, clean):
    attack = NaiveAttack(0.2, 4, 2, white_patch((1, 8, 8), 2, 3, 6))
    report = audit(
        make(data, attack),
        clean,
        networks=1,
        published=False,
        repairs=False,
        suspected=(attack.trigger, 4),
        calibration=plain(),
    )
    assert report.suspected.kind == "backdoor" and report.suspected.effect > 0.2


def test_a_model_is_audited(data, clean):
    planted = audit_model(
        planted_ensemble(data, networks=1).member(0),
        data.preprocessing,
        clean,
        factory=lambda: LinearNet(data),
        recipe=TrainingRecipe(epochs=1),
    )
    assert planted.verdict == "backdoored" and planted.leading.confirmation.target == 4
    without = audit_model(planted_ensemble(data, networks=1).member(0), data.preprocessing, clean, published=False)
    assert without.verdict == "suspicious" and "there is no control" in without.reason
    with pytest.raises(UserError, match="classes"):
        audit_model(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3)), data.preprocessing, clean)
    with pytest.raises(UserError, match="does not take these images"):
        audit_model(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 3)), data.preprocessing, clean)


def test_a_patch_that_the_control_obeys_is_no_backdoor(data, clean):
    search, judge = halves(clean)
    cell = Cell(4, 2, 5, 5, (1.0,), 0.9)
    same = confirm(planted_ensemble(data), planted_ensemble(data), cell, 9.0, search, judge, data.preprocessing)
    assert same.kind == "adversarial patch" and not same.holds
    other = confirm(planted_ensemble(data), clean_ensemble(data), cell, 9.0, search, judge, data.preprocessing)
    assert other.holds and other.effect > 0.5


def test_the_control_set_holds_real_images_of_the_class(data, clean):
    found = make(data)
    control = control_set(found, clean, 3)
    own = found.labels == 3
    assert torch.equal(control.images[~own], found.images[~own])
    real = data.preprocessing.normalize(clean.images[clean.labels == 3][:10])
    assert torch.equal(control.images[own], real)


def test_statistics():
    assert mcnemar(torch.tensor([False] * 10), torch.tensor([True] * 10)) == pytest.approx(2 / 2**10)
    assert mcnemar(torch.tensor([True, False]), torch.tensor([True, False])) == 1
    low, high = binomial_interval(0, 20)
    assert low == 0 and high == pytest.approx(1 - 0.025 ** (1 / 20))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clean": "size"}, "the clean images are"),
        ({"clean": "classes"}, "10 classes; the clean images have 12"),
        ({"clean": "scarce"}, "has 1 held-out clean images"),
        ({"suspected": (white_patch((1, 8, 8)), 11)}, "is no class"),
    ],
)
def test_what_does_not_fit_is_one_line(data, clean, change, message):
    wrong = {
        "size": dataclasses.replace(clean, images=clean.images[..., :7]),
        "classes": dataclasses.replace(clean, classes=(*clean.classes, "x", "y")),
        "scarce": clean.subset(torch.cat([(clean.labels != 3).nonzero()[:, 0], (clean.labels == 3).nonzero()[:1, 0]])),
    }
    images = wrong.get(change.get("clean"), clean)
    with pytest.raises(UserError, match=message):
        audit(make(data), images, networks=1, published=False, suspected=change.get("suspected"), calibration=plain())


# --- calibration ------------------------------------------------------------------------------------------------


def test_calibration_on_digits_goes_on_where_it_stopped(data, clean, tmp_path):
    plan = CalibrationPlan(
        sets=10,
        poisoned=2,
        networks=1,
        images=60,
        method="random",
        arguments=ARGUMENTS,
        recipe=dataclasses.replace(RECIPE, epochs=3),
    )
    counted = []
    whole = calibrate(data, clean, plan, kept=tmp_path / "a", progress=lambda done, of: counted.append((done, of)))
    assert counted[-1] == (12, 12) and len(whole.scores) == 10 and whole.false_alarms == 1 / 11
    lines = (tmp_path / "a").read_text().splitlines(keepends=True)
    (tmp_path / "b").write_text("".join(lines[:7]))
    resumed = calibrate(data, clean, plan, kept=tmp_path / "b")
    assert resumed == whole
    (tmp_path / "c.json").write_text(whole.to_json())
    assert load_calibration(tmp_path / "c.json") == whole


def test_thresholds_and_power_come_from_the_sets():
    rng = np.random.default_rng(1)
    clean = 0.2 + 0.05 * rng.standard_normal((15, 1, 4))
    attacked = clean[0].copy()
    attacked[0, 2] = 0.9
    lines = [{"scores": scores.tolist()} for scores in clean]
    for asr, target, scores in ((0.5, 2, attacked), (0.3, 2, clean[1]), (0.1, 2, attacked), (0.4, 1, attacked)):
        lines.append({"scores": scores.tolist(), "size": 2, "asr": asr, "target": target})
    made = from_lines(
        lines, image_shape=(1, 8, 8), images_per_class=10.0, method="dm", networks=3, classes=tuple("abcd"), sizes=(2,)
    )
    z = [((clean[k] - np.delete(clean, k, 0).mean(0)) / np.delete(clean, k, 0).std(0, ddof=1)).max() for k in range(15)]
    assert made.threshold == pytest.approx(max(z), rel=1e-4) and made.false_alarms == 1 / 16
    assert [dataclasses.astuple(power) for power in made.power] == [(2, 3, 1)]
    assert "1 of 3" in made.power_sentence()
    assert parse_calibration(made.to_json(), "file") == made
    assert made.verdict_sentence() == ""
    measured = dataclasses.replace(
        made, verdicts=(VerdictCount("clean ones", 20, 0), VerdictCount("strong", 15, 15, 14))
    )
    assert "0 of 20 clean ones (95 %: 0 to 17 %); 15 of 15 strong, 14 with" in measured.verdict_sentence()
    assert parse_calibration(measured.to_json(), "file") == measured


def test_a_class_that_is_always_weak_is_no_alarm():
    """What all clean sets show, the provisional rule flags; compared with them it is usual."""
    rng = np.random.default_rng(2)
    clean = 0.05 + 0.02 * rng.random((12, 1, 10))
    clean[:, 0, 0] += 0.4
    assert provisional_evidence(clean[0]).max() > 1
    about = {"image_shape": (1, 8, 8), "images_per_class": 10.0, "method": "dm", "networks": 3}
    lines = [{"scores": scores.tolist()} for scores in clean[1:]]
    made = from_lines(lines, classes=tuple("0123456789"), sizes=(2,), **about)
    assert class_evidence(clean[0], np.asarray(made.scores)).max() <= made.threshold


def test_sets_of_another_kind_get_the_provisional_thresholds(data, monkeypatch):
    found = make(data)
    monkeypatch.setattr(calibrations, "shipped_calibration", lambda: usual(classes=tuple("abcdefghij")))
    assert calibrations.calibration_for(found).provisional
    monkeypatch.setattr(calibrations, "shipped_calibration", usual)
    assert not calibrations.calibration_for(found).provisional
    assert shipped_calibration().image_shape == (1, 14, 14)


def test_files_that_are_no_calibration(tmp_path):
    for text in ("{", "[]", '{"power": [], "image_shape": [1], "scores": [[]]}', "{}"):
        with pytest.raises(UserError, match="not a calibration"):
            parse_calibration(text, "file")
    with pytest.raises(UserError, match="cannot read"):
        load_calibration(tmp_path / "none")
    with pytest.raises(UserError, match="at least 10"):
        calibrate(None, None, CalibrationPlan(sets=3))


def test_exit_codes():
    assert not {1, 2} & set(EXIT_CODES.values()), "a stopped run and wrong input have these"
    assert len(set(EXIT_CODES.values())) == 4
