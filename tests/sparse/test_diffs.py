"""Diff files: exact, small, and only on their own base."""

import copy
import json

import pytest
import torch
from safetensors.torch import save_file
from sparse_net import Net, loss

from tenfold.errors import UserError
from tenfold.sparse import (
    DiffBank,
    SparseTuner,
    apply_diff,
    compose,
    find_mask,
    import_composable_sft,
    import_shira,
    load_diff,
)
from tenfold.sparse.diff_files import decode_positions, encode_positions
from tenfold.sparse.parameters import index_dtype


def tuned(net, batches, seed, dense=(), fraction=0.05):
    tuner = SparseTuner(net, find_mask(net, fraction=fraction, criterion="random", seed=seed, dense=dense), dense=dense)
    optimizer = tuner.adamw(0.1)
    for tokens in batches:
        loss(net, tokens).backward()
        optimizer.step()
    return tuner


def same(model, state):
    return all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_diff_is_applied_and_reverted_bit_for_bit(net, batches, tmp_path):
    base = copy.deepcopy(net.state_dict())
    tuner = tuned(net, batches, 1, dense=["mix.*"])
    trained = copy.deepcopy(net.state_dict())
    assert not torch.equal(base["norm.running_mean"], trained["norm.running_mean"])  # a buffer that moved goes along
    path = tuner.save(tmp_path / "task")
    assert path.name == "task.sft.safetensors"
    tuner.revert()
    assert same(net, base)
    with apply_diff(net, path) as applied:
        assert same(net, trained)
        with pytest.raises(UserError, match="another base"):  # not on top of itself
            apply_diff(net, path)
    assert same(net, base)
    applied.apply()
    assert same(net, trained)
    applied.revert()
    with pytest.raises(UserError, match="another base"):
        apply_diff(Net(), path)
    other = Net().bfloat16()
    with pytest.raises(UserError, match="another base"):
        apply_diff(other, path)


def test_many_diffs_are_switched_in_place(net, batches):
    base = copy.deepcopy(net.state_dict())
    bank, states = DiffBank(net), {}
    for seed in range(4):
        tuner = tuned(net, batches[:2], seed, fraction=0.02)
        states[f"customer{seed}"] = copy.deepcopy(net.state_dict())
        diff = tuner.diff()
        tuner.release()
        tuner.revert()
        bank.add(f"customer{seed}", diff)
    for name in [*states, *reversed(states)] * 20:
        bank.switch(name)
        assert same(net, states[name])
    bank.switch(None)
    assert same(net, base)
    with pytest.raises(UserError, match="no diff 'nobody'"):
        bank.switch("nobody")


def test_composition(net, batches):
    first, second = (tuned(net, batches, seed, fraction=0.3) for seed in (1,)), None
    first = next(first)
    one = first.diff()
    first.release()
    first.revert()
    other = tuned(net, batches, 2, fraction=0.3)
    second = other.diff()
    other.release()
    other.revert()
    base = dict(net.state_dict())
    a, b = one.positions["mix.weight"], second.positions["mix.weight"]
    shared = a[torch.isin(a, b)].long()
    only = a[~torch.isin(a, b)].long()
    for overlap in ("last", "sum", "mean"):
        both = compose(net, [one, second], overlap)
        before = copy.deepcopy(base)
        with apply_diff(net, both):
            now = net.mix.weight.detach().flatten()
            value = {
                name: torch.zeros(64).index_copy(0, d.positions["mix.weight"].long(), d.values["mix.weight"])
                for name, d in (("a", one), ("b", second))
            }
            assert torch.equal(now[only], value["a"][only])
            start = before["mix.weight"].flatten()
            wanted = {"last": value["b"], "sum": value["a"] + value["b"] - start, "mean": (value["a"] + value["b"]) / 2}
            torch.testing.assert_close(now[shared], wanted[overlap][shared])
            if overlap == "last":
                assert torch.equal(now[shared], value["b"][shared])
        assert same(net, before)


def test_positions_survive_gaps_of_all_sizes():
    for positions in ([], [0], [254, 255, 256, 511, 1022], [0, 70_000, 70_001, 2**33]):
        index = torch.tensor(positions, dtype=torch.int64)
        assert decode_positions(encode_positions(index)).tolist() == positions
    assert (index_dtype(2**31 - 1), index_dtype(2**31)) == (torch.int32, torch.int64)
    spread = torch.arange(0, 10_000_000, 200)
    assert encode_positions(spread).numel() == len(spread)  # one byte each


def test_a_file_that_is_damaged_or_something_else_is_refused(net, batches, tmp_path):
    tuner = tuned(net, batches, 1)
    path = tuner.save(tmp_path / "task.sft.safetensors")
    content = path.read_bytes()
    (tmp_path / "short.safetensors").write_bytes(content[:-10])
    flipped = bytearray(content)
    flipped[-3] ^= 1
    (tmp_path / "flipped.safetensors").write_bytes(flipped)
    save_file({"a": torch.ones(1)}, tmp_path / "plain.safetensors")
    header = {"format": "tenfold-diff-1", "base": "", "sha256": "", "shapes": {"mix.weight": [8, 8]}, "about": {}}
    outside = {"mix.weight::idx": torch.tensor([200], dtype=torch.uint8), "mix.weight::val": torch.ones(1)}
    save_file(outside, tmp_path / "outside.safetensors", metadata={"tenfold": json.dumps(header)})
    for name in ("short", "flipped", "plain", "outside", "missing"):
        with pytest.raises(UserError) as error:
            load_diff(tmp_path / f"{name}.safetensors")
        assert "\n" not in str(error.value)


def test_composable_sft_files_are_read(net, tmp_path):
    base = copy.deepcopy(net.state_dict())
    difference = torch.zeros(8, 8)
    difference[1, 2], difference[7, 0] = 0.5, -0.25
    # Steps run through the first axis fastest: entry (1, 2) is 1 + 2 * 8 = 17, entry (7, 0) is 7.
    encoded = {
        "size": torch.Size([8, 8]),
        "index_steps": torch.tensor([7, 10], dtype=torch.uint8),
        "values": torch.tensor([-0.25, 0.5]),
    }
    for entry, names in ((encoded, ("diffs", "abs")), (difference.to_sparse(), ("body", "head"))):
        content = {names[0]: {"mix.weight": entry}, names[1]: {"mix.bias": torch.ones(8)}}
        torch.save(content, tmp_path / "pytorch_diff.bin")
        with apply_diff(net, import_composable_sft(net, tmp_path)):
            assert torch.equal(net.mix.weight, base["mix.weight"] + difference)
            assert torch.equal(net.mix.bias, torch.ones(8))
        assert same(net, base)
    torch.save({"diffs": {"mix.weight": {**encoded, "size": [8, 9]}}}, tmp_path / "pytorch_diff.bin")
    with pytest.raises(UserError, match="another model"):
        import_composable_sft(net, tmp_path)


def test_shira_adapters_are_read(net, tmp_path):
    base = copy.deepcopy(net.state_dict())
    weights = {
        "base_model.model.mix.shira_weight": torch.tensor([0.5, -1.0]),
        "base_model.model.mix.shira_indices": torch.tensor([[7, 0], [1, 3]], dtype=torch.int32),
    }
    save_file(weights, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "SHIRA", "fan_in_fan_out": false}')
    with apply_diff(net, import_shira(net, tmp_path)):
        difference = torch.zeros(8, 8)
        difference[7, 1], difference[0, 3] = 0.5, -1.0
        assert torch.equal(net.mix.weight, base["mix.weight"] + difference)
    assert same(net, base)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(UserError, match="another kind"):
        import_shira(net, tmp_path)
