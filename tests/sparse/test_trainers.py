"""Sparse optimizers in the trainers that people have: Lightning's, transformers'."""

import copy

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from sparse_net import Net, loss
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from tenfold.sparse import SparseAdamW, find_mask

pytestmark = pytest.mark.filterwarnings("ignore")


def half_as_fast(step):
    return 1.0 if step < 2 else 0.5


def by_hand(net, mask, batches, accumulate=1):
    """A plain loop with the same optimizer and schedule."""
    optimizer = SparseAdamW(net, mask, 1e-2, dense=["mix.bias"], max_norm=1.0)
    schedule = LambdaLR(optimizer, half_as_fast)
    for start in range(0, len(batches), accumulate):
        for tokens in batches[start : start + accumulate]:
            (loss(net, tokens) / accumulate).backward()
        optimizer.step()
        schedule.step()
    optimizer.release()
    return net


class Task(LightningModule):
    def __init__(self, net, mask):
        super().__init__()
        self.net, self.mask = net, mask

    def training_step(self, batch, number):
        return loss(self.net, batch)

    def configure_optimizers(self):
        optimizer = SparseAdamW(self.net, self.mask, 1e-2, dense=["mix.bias"], max_norm=1.0)
        schedule = {"scheduler": LambdaLR(optimizer, half_as_fast), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}


def fit(net, mask, batches, folder, epochs, **more):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(
        max_epochs=epochs, accumulate_grad_batches=2, default_root_dir=folder, enable_checkpointing=False, **quiet
    )
    trainer.fit(Task(net, mask), DataLoader(batches, batch_size=None), **more)
    return trainer


def test_lightning_trains_and_resumes_as_a_plain_loop_does(net, batches, tmp_path):
    mask = find_mask(net, loss, [batches[0][:1]], fraction=0.05, dense=["mix.bias"])
    whole, stopped, wanted = (copy.deepcopy(net) for _ in range(3))
    by_hand(wanted, mask, batches * 2, accumulate=2)
    fit(whole, mask, batches, tmp_path, 2)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), wanted.parameters(), strict=True))
    fit(stopped, mask, batches, tmp_path, 1).save_checkpoint(tmp_path / "half.ckpt")
    resumed = Net()
    fit(resumed, mask, batches, tmp_path, 2, ckpt_path=tmp_path / "half.ckpt", weights_only=False)
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), wanted.parameters(), strict=True))
    frozen = ~mask.dense("mix.weight")
    assert torch.equal(whole.mix.weight[frozen], net.mix.weight[frozen])
    assert not torch.equal(whole.mix.weight, net.mix.weight)


def test_transformers_trains_as_a_plain_loop_does(net, batches, tmp_path):
    pytest.importorskip("accelerate")
    transformers = pytest.importorskip("transformers")

    class Model(torch.nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, tokens):
            return {"loss": loss(self.net, tokens)}

    mask = find_mask(net, loss, [batches[0][:1]], fraction=0.05, dense=["mix.bias"])
    wanted = by_hand(copy.deepcopy(net), mask, [batches[0]] * 4)
    optimizer = SparseAdamW(net, mask, 1e-2, dense=["mix.bias"], max_norm=1.0)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=4, per_device_train_batch_size=4, max_grad_norm=0, use_cpu=True,
        report_to=[], save_strategy="no", disable_tqdm=True, remove_unused_columns=False,
    )  # fmt: skip
    transformers.Trainer(
        model=Model(net),
        args=arguments,
        train_dataset=[{"tokens": row} for row in batches[0]],
        optimizers=(optimizer, LambdaLR(optimizer, half_as_fast)),
    ).train()
    assert optimizer.state_bytes() < 16 * (mask.chosen + 8) + 200
    for name, value in net.named_parameters():  # the Trainer shuffles a batch's rows: sums round differently
        if name == "convolution.bias":  # in front of batch norm its gradient is nothing but rounding
            continue
        torch.testing.assert_close(value, wanted.get_parameter(name), rtol=1e-4, atol=1e-5)
