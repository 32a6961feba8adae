"""The audit, end to end: a poisoned set, a clean one, a model; and its parts."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from planted import LinearNet, calibration_of, clean_ensemble, digit_data, planted_ensemble

from tenfold.data import digits
from tenfold.errors import UserError
from tenfold.report import write_report
from tenfold.systems.condensation_audit.attacks.naive_attack import NaiveAttack
from tenfold.systems.condensation_audit.attacks.success import binomial_interval, mcnemar
from tenfold.systems.condensation_audit.attacks.triggers import white_patch
from tenfold.systems.condensation_audit.auditing.audit import audit, audit_model
from tenfold.systems.condensation_audit.auditing.calibrate import CalibrationPlan, calibrate, plan_like
from tenfold.systems.condensation_audit.auditing.confirmation import confirm, control_set
from tenfold.systems.condensation_audit.auditing.page import to_results
from tenfold.systems.condensation_audit.auditing.report import EXIT_CODES, NOT_TESTED
from tenfold.systems.condensation_audit.condensers.condense import condense
from tenfold.systems.condensation_audit.data.partition import halves
from tenfold.systems.condensation_audit.defences import calibration as calibrations
from tenfold.systems.condensation_audit.defences.calibration import (
    VerdictCount,
    class_evidence,
    from_lines,
    load_calibration,
    parse_calibration,
)
from tenfold.systems.condensation_audit.defences.patch_scan import Cell, provisional_evidence
from tenfold.systems.condensation_audit.experiment.settings import PRESETS, settings_of
from tenfold.systems.condensation_audit.sets.condensed_set import TrainingRecipe
from tenfold.systems.condensation_audit.sets.kind import SetKind, kind_of

KIND = SetKind(
    "dm", {}, 10.0, "convnet", {}, {}, (1, 8, 8), tuple("0123456789"), (0.3,), (0.4,), images=100,
    pixel_mean=(0.3,), pixel_std=(0.4,),
)  # fmt: skip
ARGUMENTS = {"width": 12, "depth": 2}
RECIPE = TrainingRecipe("convnet", ARGUMENTS, epochs=40, learning_rate=0.05, batch_size=256)


@pytest.fixture(scope="module")
def data():
    return digit_data(slice(0, 1197))


@pytest.fixture(scope="module")
def clean():
    return digits().subset(slice(1197, 1597))


def make(data, attack=None, seed=0):
    return condense(data, "random", 8, network_arguments=ARGUMENTS, recipe=RECIPE, attack=attack, seed=seed)


@pytest.fixture(scope="module")
def attacked(data):
    return make(data, NaiveAttack(0.2, 4, 2, white_patch((1, 8, 8), 2, 3, 6)))


@pytest.fixture(scope="module")
def poisoned_report(attacked, clean):
    return audit(attacked, clean, networks=2, calibration=calibration_of(attacked, 2))


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
    assert report.attribution is not None and len(report.attribution.images) == 8
    assert {row.name for row in report.defences} >= {"neural cleanse", "neuron stimulation (ABS)", "STRIP"}
    clusters = next(row for row in report.defences if row.name == "activation clustering")
    assert "those of clean sets are flagged, too" in clusters.note


def test_the_report_is_a_page_and_plain_json(poisoned_report, tmp_path):
    text = json.dumps(poisoned_report.to_dict(), allow_nan=False)
    assert all(line in text for line in NOT_TESTED)
    results = to_results(poisoned_report)
    assert not results.claims[0].holds and len(results.pictures) == 2
    write_report(results, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "backdoored" in page and "Repairs, measured" in page


def test_a_clean_set_passes(data, clean):
    found = make(data, seed=1)
    report = audit(found, clean, networks=1, published=False, calibration=calibration_of(found, 1, level=0.6))
    assert report.verdict == "clean (as far as tested)" and report.exit_code == 0 and report.uncalibrated == ""
    assert report.repairs == [] and report.attribution is None


def test_a_set_of_an_uncalibrated_kind_is_never_called_backdoored(data, clean, attacked):
    """The same set, poisoned and found, judged by clean sets of another kind."""
    other = calibration_of(make(data, seed=1), 1)
    other = dataclasses.replace(other, kind=dataclasses.replace(other.kind, reading={"from": [28, 28]}))
    report = audit(attacked, clean, networks=1, published=False, repairs=False, calibration=other)
    assert report.verdict == "not calibrated for this kind" and report.exit_code == 13
    assert "the clean sets differ in reading" in report.reason and "calibrate --like" in report.reason
    assert report.to_dict()["uncalibrated"] == report.uncalibrated != ""


def test_search_and_judgement_share_no_image(clean):
    numbered = dataclasses.replace(clean, images=clean.images.clone())
    first, second = halves(numbered)
    assert len(first) + len(second) == len(clean)
    keys = [{bytes(image.numpy().tobytes()) for image in half.images} for half in (first, second)]
    everything = {bytes(image.numpy().tobytes()) for image in clean.images}
    assert len(keys[0] | keys[1]) == len(everything) and len(keys[0] & keys[1]) <= len(clean) - len(everything)
    counts = [torch.bincount(half.labels, minlength=10) for half in (first, second)]
    assert (counts[0] - counts[1]).abs().max() <= 1


def test_without_clean_images_the_evidence_is_weak(attacked):
    calibration = calibration_of(attacked, 1, level=0.0)
    report = audit(attacked, None, networks=1, published=False, calibration=calibration)
    assert report.weak and report.verdict in ("suspicious", "not assessable") and "weak" in report.notes[0]


def test_an_altered_set_is_told_by_its_accuracy(data, clean):
    found = dataclasses.replace(make(data), results={"accuracy": 0.995})
    calibration = calibration_of(found, 1, level=0.9)
    report = audit(found, clean, networks=1, published=False, repairs=False, calibration=calibration)
    assert any("was altered" in note for note in report.notes)


def test_a_suspected_trigger_is_measured_beside_its_control(attacked, clean):
    trigger = white_patch((1, 8, 8), 2, 3, 6)
    options = {"networks": 1, "published": False, "repairs": False, "suspected": (trigger, 4)}
    report = audit(attacked, clean, calibration=calibration_of(attacked, 1, level=0.9), **options)
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
    real = data.preprocessing.normalize(clean.images[clean.labels == 3][:8])
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
        audit(make(data), images, networks=1, published=False, suspected=change.get("suspected"))


# --- calibration ------------------------------------------------------------------------------------------------


def test_calibration_goes_on_where_it_stopped_and_only_with_what_it_began(data, clean, tmp_path):
    few = data.subset(torch.arange(200))
    plan = CalibrationPlan(
        sets=10, poisoned=1, networks=1, images=20, method="random", images_per_class=2,
        arguments={"width": 4, "depth": 2}, recipe=dataclasses.replace(RECIPE, epochs=2),
    )  # fmt: skip
    counted = []
    whole = calibrate(few, clean, plan, kept=tmp_path / "a", progress=lambda done, of: counted.append((done, of)))
    assert counted[-1] == (11, 11) and len(whole.scores) == 10 and whole.false_alarms == 1 / 11
    assert whole.kind.method == "random" and whole.kind.images == 180 and whole.scanned == 20
    lines = (tmp_path / "a").read_text().splitlines(keepends=True)
    (tmp_path / "b").write_text("".join(lines[:9]))
    assert calibrate(few, clean, plan, kept=tmp_path / "b") == whole
    (tmp_path / "c.json").write_text(whole.to_json())
    assert load_calibration(tmp_path / "c.json") == whole
    for other in (dataclasses.replace(plan, seed=1), dataclasses.replace(plan, networks=2)):
        with pytest.raises(UserError, match="of other data or settings"):
            calibrate(few, clean, other, kept=tmp_path / "a")
    with pytest.raises(UserError, match="of other data or settings"):
        calibrate(data.subset(torch.arange(201)), clean, plan, kept=tmp_path / "a")


def test_the_kind_of_a_set_is_all_that_moves_its_scores(data):
    found = make(data)
    kind = kind_of(found)
    assert kind.difference(kind_of(make(data, seed=5))) == ""
    assert kind.difference(kind_of(make(data.subset(torch.arange(1000))))) == ""  # a little fewer images
    assert "number of real images" in kind.difference(kind_of(make(data.subset(torch.arange(500)))))
    brighter = dataclasses.replace(data, pixels=data.pixels // 2)
    assert "pixel mean" in kind.difference(kind_of(make(brighter)))
    resized = dataclasses.replace(data, reading={"from": [16, 16], "resize": "squeeze"})
    assert "reading" in kind.difference(kind_of(make(resized)))
    for change in ({"recipe": dataclasses.replace(RECIPE, epochs=41)}, {"classes": tuple("abcdefghij")}):
        assert next(iter(change)) in kind.difference(kind_of(dataclasses.replace(found, **change)))
    imported = dataclasses.replace(found, method="imported", source={})
    assert "method" in kind.difference(kind_of(imported))
    with pytest.raises(UserError, match="does not say how it was condensed"):
        plan_like(imported, data)
    plan = plan_like(found, data, sets=12)
    assert (plan.method, plan.images_per_class, plan.recipe, plan.sets) == ("random", 8, RECIPE, 12)


def test_thresholds_and_power_come_from_the_sets():
    rng = np.random.default_rng(1)
    clean = 0.2 + 0.05 * rng.standard_normal((15, 1, 4))
    attacked = clean[0].copy()
    attacked[0, 2] = 0.9
    lines = [{"scores": scores.tolist()} for scores in clean]
    for asr, target, scores in ((0.5, 2, attacked), (0.3, 2, clean[1]), (0.1, 2, attacked), (0.4, 1, attacked)):
        lines.append({"scores": scores.tolist(), "size": 2, "asr": asr, "target": target})
    made = from_lines(lines, kind=dataclasses.replace(KIND, classes=tuple("abcd")), networks=3, sizes=(2,))
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
    lines = [{"scores": scores.tolist()} for scores in clean[1:]]
    made = from_lines(lines, kind=KIND, networks=3, sizes=(2,))
    assert class_evidence(clean[0], np.asarray(made.scores)).max() <= made.threshold


def test_what_is_shipped_is_of_the_presets():
    for made in calibrations.shipped_calibrations():
        preset = PRESETS[made.note.split()[-1].strip("`.")]
        options = preset.attack
        assert made.kind.method == options.method and made.kind.images_per_class == options.images_per_class
        assert made.networks == preset.training.networks and len(made.scores) >= 10
        assert made.kind.recipe["epochs"] == preset.training.epochs
        asked = settings_of(preset, options.method, options.images_per_class)
        assert {name: made.kind.settings[name] for name in asked} == asked


def test_files_that_are_no_calibration(tmp_path):
    for text in ("{", "[]", '{"kind": {}, "power": [], "scores": [[]]}', "{}"):
        with pytest.raises(UserError, match="not a calibration"):
            parse_calibration(text, "file")
    with pytest.raises(UserError, match="cannot read"):
        load_calibration(tmp_path / "none")
    with pytest.raises(UserError, match="at least 10"):
        CalibrationPlan(sets=3)


def test_exit_codes():
    assert not {1, 2} & set(EXIT_CODES.values()), "a stopped run and wrong input have these"
    assert len(set(EXIT_CODES.values())) == 5
