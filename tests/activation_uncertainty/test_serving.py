"""One pass, two answers: the main model's own to the bit, the same after saving and exporting."""

import copy
import json

import pytest
import torch
from torch import nn

from tenfold.errors import UserError
from tenfold.systems.activation_uncertainty import (
    ActivationFeatures,
    ActivationUncertainty,
    JointTask,
    UncertainModel,
    load_estimator,
)
from tenfold.systems.activation_uncertainty.ensemble import ensemble_labels
from tenfold.systems.activation_uncertainty.network.features import read_features
from tenfold.systems.activation_uncertainty.serving.onnx_graph import export_uncertain

ROWS = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))


def mlp(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 16), nn.ReLU(), nn.Dropout(0.3),
        nn.Linear(16, 3),
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def learner():
    model = mlp()
    return ActivationUncertainty(model, ROWS[:4], passes=30).fit([ROWS], epochs=40)


def test_predictions_are_the_main_models_to_the_bit(learner):
    """Before, during and after."""
    model = learner.model
    before = model(ROWS)
    served = learner.serve()
    prediction, uncertainty = served(ROWS)
    assert torch.equal(prediction, before)
    assert torch.equal(model(ROWS), before)
    assert uncertainty.shape == (400,)
    assert (uncertainty >= 0).all()
    served.train()
    assert torch.equal(served(ROWS)[0], before)  # it stays in eval mode
    read = learner.estimate(learner.label([ROWS], passes=2))
    torch.testing.assert_close(uncertainty, read, atol=1e-6, rtol=1e-4)
    assert torch.equal(served.score(ROWS).uncertainty, uncertainty)


def test_an_estimator_is_loaded_onto_its_own_model_only(learner, tmp_path):
    learner.save(tmp_path, metrics={"test_r2": 0.5})
    again = load_estimator(tmp_path, mlp())
    for ours, theirs in zip(again(ROWS), learner.serve()(ROWS), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    manifest = json.loads((tmp_path / "estimator.json").read_text())
    assert manifest["metrics"]["test_r2"] == 0.5
    assert [site["path"] for site in manifest["dropout"]] == ["3", "6"]
    assert manifest["rows"] == {"train": 320, "validation": 80}
    further = mlp()
    with torch.no_grad():
        further[7].weight += 0.05
    with pytest.raises(UserError, match="further training"):
        load_estimator(tmp_path, further)
    with pytest.raises(UserError, match="names or shapes"):
        load_estimator(tmp_path, nn.Sequential(nn.Linear(8, 3)))
    with pytest.raises(UserError, match="further training"):
        load_estimator(tmp_path, mlp(1))
    weights = (tmp_path / "estimator.safetensors").read_bytes()
    for damaged in (weights[:-5], b"", weights[:100] + b"x" + weights[101:]):
        (tmp_path / "estimator.safetensors").write_bytes(damaged)
        with pytest.raises(UserError, match="changed or cut short"):
            load_estimator(tmp_path, mlp())
    (tmp_path / "estimator.json").write_text("{")
    with pytest.raises(UserError, match="not an estimator's manifest"):
        load_estimator(tmp_path, mlp())
    with pytest.raises(UserError, match="holds no estimator"):
        load_estimator(tmp_path / "none", mlp())


def test_the_fingerprint_holds_no_row_of_the_users(learner, tmp_path):
    secret = ActivationUncertainty(mlp(), ROWS[:4] * 0 + 1234.5, passes=10).fit([ROWS], epochs=2)
    secret.save(tmp_path)
    probe = json.loads((tmp_path / "estimator.json").read_text())["fingerprint"]["probe"]
    assert set(probe) == {"shape", "type", "mean", "deviation"}


def test_one_onnx_graph_has_both_outputs(learner, tmp_path):
    pytest.importorskip("onnxruntime")
    from tenfold.models.onnx import onnx_session

    served = learner.serve()
    path = export_uncertain(served, {"x": ROWS[:2]}, tmp_path / "model.onnx")
    session = onnx_session(path)
    assert [output.name for output in session.get_outputs()] == ["prediction", "uncertainty"]
    for rows in (ROWS[:1], ROWS[:37]):
        answers = session.run(None, {"x": rows.numpy()})
        for ours, theirs in zip(served(rows), answers, strict=True):
            torch.testing.assert_close(ours.detach(), torch.from_numpy(theirs), atol=1e-5, rtol=1e-4)


def test_inputs_far_from_the_data_are_reported(learner):
    """A small estimate far away means nothing."""
    served = learner.serve()
    near, far = served.score(ROWS), served.score(ROWS * 50)
    assert near.far.float().mean() < 0.02
    assert far.far.float().mean() > 0.9
    assert far.outside.mean() > near.outside.mean()


def test_statistics_can_be_taken_anew_for_a_quantised_main_model(learner):
    """The estimator is kept, the features' statistics are those of the changed model."""
    quantised = copy.deepcopy(learner.model)
    with torch.no_grad():
        for weight in quantised.parameters():
            step = weight.abs().max() / 31 + 1e-12  # six bits
            weight.copy_((weight / step).round() * step)
    features = ActivationFeatures.from_dict(quantised, learner.serve().features.to_dict())
    served = UncertainModel(quantised, features, copy.deepcopy(learner.result.estimator), learner.target)
    served.set_statistics(read_features(quantised, [ROWS], features))
    read = served.estimator.standardise(read_features(quantised, [ROWS], features))
    torch.testing.assert_close(read.mean(0), torch.zeros(read.shape[1]), atol=1e-4, rtol=0)
    correlation = torch.corrcoef(torch.stack([served(ROWS)[1], learner.serve()(ROWS)[1]]))[0, 1]
    assert correlation > 0.8
    assert served.score(ROWS).far.float().mean() < 0.02


def test_joint_training_leaves_the_main_model_alone():
    """No gradient reaches it, and its own training is the same to the bit."""
    x, y = ROWS[:64], torch.randint(0, 3, (64,), generator=torch.Generator().manual_seed(1))

    def train(with_joint):
        model = mlp().train()
        learner = ActivationUncertainty(model, ROWS[:4], passes=30)
        joint = JointTask(learner, start=1, share=0.5, passes=3)
        optimizer = torch.optim.Adam([*model.parameters(), *joint.estimator.parameters()], lr=1e-2)
        torch.manual_seed(5)
        for step in range(6):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            if with_joint:
                loss = loss + joint(x, step)
            loss.backward()
            optimizer.step()
        return model, joint

    alone, _ = train(False)
    together, joint = train(True)
    for name, value in alone.state_dict().items():
        assert torch.equal(value, together.state_dict()[name]), name
    together.zero_grad()
    joint(x, 5).backward()
    assert all(p.grad is None for p in together.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in joint.estimator.parameters())
    assert joint(x, 0) == 0


def test_a_joint_estimator_learns():
    model = mlp()
    learner = ActivationUncertainty(model, ROWS[:4], passes=200)
    joint = JointTask(learner, start=0, share=1.0, passes=4)
    optimizer = torch.optim.AdamW(joint.estimator.parameters(), lr=1e-2)
    for step in range(120):
        optimizer.zero_grad()
        joint(ROWS[:200], step).backward()
        optimizer.step()
    labels = learner.label([ROWS[200:]], seed=9)
    estimates = joint.estimator.eval()(labels.features).detach()
    assert torch.corrcoef(torch.stack([estimates, labels.uncertainty]))[0, 1] > 0.7
    assert estimates.mean() / labels.uncertainty.mean() == pytest.approx(1, abs=0.15)


def test_ensembles_need_members_that_differ():
    models = [mlp(seed) for seed in range(4)]
    learner = ActivationUncertainty(models[0], ROWS[:4])
    labels = ensemble_labels(models, lambda: [ROWS], learner.target, features=learner.features)
    outputs = torch.stack([model(ROWS).softmax(-1) for model in models]).detach().double()
    best = outputs[0].argmax(-1)
    by_hand = outputs.std(0).gather(1, best[:, None])[:, 0]
    torch.testing.assert_close(labels.uncertainty.double(), by_hand, atol=1e-6, rtol=1e-4)
    assert learner.fit(labels, epochs=5).result.train_rows == 320
    with pytest.raises(UserError, match="members 0 and 4"):
        ensemble_labels([*models, mlp(0)], lambda: [ROWS], learner.target, features=learner.features)
    with pytest.raises(UserError, match="at least 2"):
        ensemble_labels(models[:1], lambda: [ROWS], learner.target, features=learner.features)


def test_predictions_per_token():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                                     intermediate_size=32, num_labels=3)  # fmt: skip
    model = transformers.BertForTokenClassification(config)
    mask = torch.ones(60, 7, dtype=torch.long)
    mask[:, 5:] = 0
    batch = {"input_ids": torch.randint(0, 50, (60, 7)), "attention_mask": mask}
    example = {name: value[:2] for name, value in batch.items()}
    learner = ActivationUncertainty(model, example, pool="tokens", passes=10)
    labels = learner.label([batch])
    assert len(labels) == 300  # padding is left out
    served = learner.fit(labels, epochs=3).serve()
    assert served(**batch)[1].shape == (420,)
    with pytest.raises(UserError, match="pool='tokens'"):
        ActivationUncertainty(model, example, passes=2).label([batch])
