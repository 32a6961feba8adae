"""Sets on disk: they come back bit for bit, and nothing else comes back (spec 10, trap 22)."""

import hashlib
import json
import os
import pickle
import struct

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from sets_for_tests import make_set, same_set

from tenfold.errors import UserError
from tenfold.systems.condensation_audit import TrainingRecipe
from tenfold.systems.condensation_audit.sets.files import load_set, save_set, verify_set
from tenfold.systems.condensation_audit.sets.manifest import seal
from tenfold.systems.condensation_audit.sets.strict_reading import canonical_json, is_plain_name, read_safetensors

FORMS = ("set.cset", "set.safetensors")


class Hostile:
    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return os.system, (f"touch {self.victim}",)


def refused(message, path, **options):
    with pytest.raises(UserError, match=message) as error:
        load_set(path, **options)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError):
        verify_set(path)


# --- what is right comes back -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "cset",
    [make_set(), make_set(soft=True), make_set(whole=True), make_set(shape=(3, 5, 4)), make_set(1, 2, (4, 1, 1))],
    ids=["plain", "soft", "whole", "colour", "table"],
)
def test_a_set_comes_back_bit_for_bit(tmp_path, form, cset):
    name = save_set(tmp_path / form, cset)
    assert same_set(load_set(tmp_path / form, allow_poisoned=True, expect=name), cset)
    report = verify_set(tmp_path / form, expect=name)
    assert report["hash"] == name and report["images"] == len(cset) and report["unlisted"] == []
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [form]


def test_special_numbers_and_plain_values_of_arrays_survive(tmp_path):
    images = torch.tensor([-0.0, 1e-45, 3e38, -3e38, 0.1, 1 / 3]).view(6, 1, 1, 1).expand(6, 1, 4, 4)
    cset = make_set(
        images=images,
        settings={"tuple": (1, 2), "array": np.arange(3), "scalar": np.float32(0.1), "tensor": torch.tensor([0.5])},
        recipe=TrainingRecipe(learning_rate=0.1 + 0.2),
        classes=("naïve", "日本", "a\u2028b"),
    )
    save_set(tmp_path / "a.cset", cset)
    back = load_set(tmp_path / "a.cset")
    assert torch.equal(back.images.view(torch.int32), images.contiguous().view(torch.int32))
    assert back.settings["tuple"] == [1, 2] and back.settings["array"] == [0, 1, 2] and back.settings["tensor"] == [0.5]
    assert back.settings["scalar"] == float(np.float32(0.1))
    assert back.recipe == cset.recipe and back.classes == cset.classes


def test_the_manifest_says_what_the_format_promises(tmp_path):
    cset = make_set(whole=True)
    name = save_set(tmp_path / "a.cset", cset)
    manifest = json.loads((tmp_path / "a.cset" / "manifest.json").read_text())
    sealed = {key: value for key, value in manifest.items() if key != "sha256"}
    own = hashlib.sha256(json.dumps(sealed, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode())
    assert own.hexdigest() == manifest["sha256"] == name
    for entry in manifest["files"]:
        content = (tmp_path / "a.cset" / entry["path"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (entry["bytes"], entry["sha256"])
    assert {entry["path"] for entry in manifest["files"]} == {"data.safetensors", "preview.png"}
    assert manifest["preprocessing"]["colour_order"] == "grey" and manifest["preprocessing"]["zca"]["eps"] == 0.1
    assert manifest["poisoned"]["attack"] == "naive"
    pixels = cset.pixels
    assert manifest["statistics"]["highest"] == pytest.approx(float(pixels.max()))
    assert manifest["statistics"]["share_outside"] == float(((pixels < 0) | (pixels > 1)).double().mean())
    assert Image.open(tmp_path / "a.cset" / "preview.png").size[0] > 100
    with safe_open(tmp_path / "a.cset" / "data.safetensors", "pt") as plain:  # others' readers read it, too
        assert torch.equal(plain.get_tensor("images"), cset.images)


def test_a_poisoned_set_keeps_its_mark_and_loads_only_when_allowed(tmp_path):
    cset = make_set(poisoned={"attack": "doorping", "target": 2})
    for form in FORMS:
        save_set(tmp_path / form, cset)
        with pytest.raises(UserError, match=r"marked as poisoned.*doorping"):
            load_set(tmp_path / form)
        assert load_set(tmp_path / form, allow_poisoned=True).poisoned == cset.poisoned
        assert any("doorping" in warning for warning in verify_set(tmp_path / form)["warnings"])


def test_networks_of_others_are_made_only_when_allowed(tmp_path):
    for network, arguments, named in (("factory", {"factory": "os:system"}, "os:system"), ("timm/x", {}, "timm/x")):
        cset = make_set(recipe=TrainingRecipe(network=network, arguments=arguments))
        save_set(tmp_path / "a.cset", cset, overwrite=True)
        with pytest.raises(UserError, match=f"{named}.*not this library's"):
            load_set(tmp_path / "a.cset")
        assert load_set(tmp_path / "a.cset", allow_network=named).recipe.network == network
        assert any(named in warning for warning in verify_set(tmp_path / "a.cset")["warnings"])


def test_signatures_may_lie_in_the_folder_and_strangers_are_named(tmp_path):
    save_set(tmp_path / "a.cset", make_set(), preview=False)
    for name in ("manifest.json.sigstore.json", "stranger.pt"):
        (tmp_path / "a.cset" / name).write_text("x")
    report = verify_set(tmp_path / "a.cset")
    assert report["signatures"] == ["manifest.json.sigstore.json"] and report["unlisted"] == ["stranger.pt"]


# --- writing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_replaced_unasked_and_nothing_half_written(tmp_path, form):
    save_set(tmp_path / form, make_set())
    with pytest.raises(UserError, match="already exists"):
        save_set(tmp_path / form, make_set(4))
    assert len(load_set(tmp_path / form)) == 6
    save_set(tmp_path / form, make_set(4), overwrite=True)
    assert len(load_set(tmp_path / form)) == 4
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        save_set(tmp_path / "file" / form, make_set())
    for value in (float("nan"), object()):
        with pytest.raises(UserError, match=r"settings\.x"):
            save_set(tmp_path / f"new-{form}", make_set(settings={"x": value}))
    with pytest.raises(UserError, match="NaN or infinite"):
        save_set(tmp_path / f"new-{form}", make_set(initial={"w": torch.tensor([float("inf")])}))
    with pytest.raises(UserError, match="type 'BOOL'"):
        save_set(tmp_path / f"new-{form}", make_set(initial={"w": torch.tensor([True])}))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", form]


def test_a_replacement_that_fails_leaves_the_old_set(tmp_path, monkeypatch):
    save_set(tmp_path / "a.cset", make_set())
    from pathlib import Path

    real = Path.rename

    def failing(self, target):
        if str(self).endswith(".tmp"):
            raise OSError(28, "No space left on device")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(UserError, match="No space left"):
        save_set(tmp_path / "a.cset", make_set(4), overwrite=True)
    assert len(load_set(tmp_path / "a.cset")) == 6
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.cset"]


# --- what is wrong is refused -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Both forms of one set, as bytes of their files."""
    folder = tmp_path_factory.mktemp("written")
    cset = make_set(4, 2, (1, 2, 2), whole=True)
    for form in FORMS:
        save_set(folder / form, cset)
    contents = {path.name: path.read_bytes() for path in (folder / FORMS[0]).iterdir()}
    return cset, contents, (folder / FORMS[1]).read_bytes()


def changed(content, data):
    """The content with some bytes exchanged, or cut."""
    if data.draw(st.booleans(), "cut"):
        return content[: data.draw(st.integers(0, len(content) - 1), "length")]
    found = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3), "bytes")):
        place = data.draw(st.integers(0, len(found) - 1), "place")
        found[place] = data.draw(st.integers(0, 255), "value")
    return bytes(found)


def refused_or_the_same(path, cset):
    try:
        found = load_set(path, allow_poisoned=True)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert same_set(found, cset)


QUICK = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@QUICK
@given(data=st.data())
def test_a_folder_with_changed_bytes_is_refused_or_the_same(written, tmp_path, data):
    cset, contents, _ = written
    victim = data.draw(st.sampled_from(sorted(contents)))
    for name, content in contents.items():
        (tmp_path / name).write_bytes(changed(content, data) if name == victim else content)
    refused_or_the_same(tmp_path, cset)


@QUICK
@given(data=st.data())
def test_a_file_with_changed_bytes_is_refused_or_the_same(written, tmp_path, data):
    cset, _, content = written
    (tmp_path / "a.safetensors").write_bytes(changed(content, data))
    refused_or_the_same(tmp_path / "a.safetensors", cset)


@QUICK
@given(content=st.binary(max_size=200))
def test_arbitrary_bytes_are_no_set(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    refused("a is no safetensors file|header of|is a pickle", tmp_path / "a")


def test_a_tensor_that_was_changed_with_its_header_intact_is_found(written, tmp_path):
    _, contents, whole = written
    (tmp_path / "a.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused("is not the one that its manifest describes", tmp_path / "a.safetensors")
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    data = contents["data.safetensors"]
    (tmp_path / "data.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    refused("was changed: it does not have the hash", tmp_path)
    (tmp_path / "data.safetensors").write_bytes(data[:-1])
    refused("cut short", tmp_path)
    (tmp_path / "data.safetensors").write_bytes(data + b"\0")
    refused("at most", tmp_path)
    (tmp_path / "data.safetensors").unlink()
    refused("No such file", tmp_path)


def test_another_set_than_expected_is_refused(tmp_path):
    name = save_set(tmp_path / "a.cset", make_set())
    with pytest.raises(UserError, match="of another set than expected"):
        load_set(tmp_path / "a.cset", expect=hashlib.sha256(name.encode()).hexdigest())


def test_a_pickle_is_refused_and_never_executed(tmp_path):
    victim = tmp_path / "executed"
    torch.save({"images": Hostile(victim)}, tmp_path / "zip.safetensors")
    torch.save({"images": Hostile(victim)}, tmp_path / "old.safetensors", _use_new_zipfile_serialization=False)
    (tmp_path / "raw.safetensors").write_bytes(pickle.dumps(Hostile(victim)))
    for name in ("zip", "old", "raw"):
        refused("is a pickle", tmp_path / f"{name}.safetensors")
    save_set(tmp_path / "a.cset", make_set())
    (tmp_path / "a.cset" / "data.safetensors").write_bytes((tmp_path / "zip.safetensors").read_bytes())
    refused(r"data\.safetensors", tmp_path / "a.cset")
    assert not victim.exists()


def rewrite(folder, **changes):
    """A manifest whose own hash is right, whatever it says."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest.pop("sha256")
    for name, value in changes.items():
        place, *rest = name.split("__")
        target, key = (manifest, place) if not rest else (manifest[place], rest[0])
        target[key] = value
    path.write_bytes(canonical_json(seal(manifest)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"files": [{"path": "../x", "bytes": 1, "sha256": ""}]}, "outside its folder"),
        ({"files": [{"path": "/etc/passwd", "bytes": 1, "sha256": ""}]}, "outside its folder"),
        ({"files": []}, r"does not name data\.safetensors once"),
        ({"classes": ["a", "b"]}, r"labels must lie in 0\.\.1; found 0\.\.2"),
        ({"schema_version": "tenfold-condensed-set-2"}, "schema_version"),
        ({"unknown": 1}, "unknown"),
        ({"tensors": []}, "'images' is not the one"),
        ({"preprocessing__mean": [0.1, 0.2]}, "1 channels need 1 means"),
        ({"preprocessing__std": [0.0]}, "above 0"),
        ({"preprocessing__image_shape": [1, 4]}, "image_shape must be"),
        ({"preprocessing__image_shape": [1, 4, 5]}, r"float32 \(n, 1, 4, 5\)"),
        (
            {"preprocessing__zca": {"mean": "zca_mean", "matrix": "zca_matrix", "inverse": "zca_inverse", "eps": 0.1}},
            "needs a tensor 'zca_mean'",
        ),
        ({"recipe": {"epochs": "many"}}, "recipe is not valid: epochs"),
        ({"recipe": {"epochs": 0}}, "at least 1"),
        ({"recipe": {"epochs": 10**12}}, "1 to 100,000 epochs"),
        ({"recipe": {"arguments": {"width": 10**9}}}, "at most 2,048"),
        ({"recipe": {"arguments": {"num_classes": 3}}}, "'num_classes', which the set itself decides"),
        ({"recipe": {"arguments": [1]}}, "recipe is not valid: arguments"),
        ({"recipe": {"script": "x"}}, "'script', which no recipe has"),
        ({"results": [1]}, "results"),
    ],
)
def test_manifests_that_lie_with_a_right_hash_are_refused(tmp_path, changes, message):
    save_set(tmp_path / "a.cset", make_set(), preview=False)
    rewrite(tmp_path / "a.cset", **changes)
    refused(message, tmp_path / "a.cset")


@pytest.mark.parametrize("content", ['{"a": 1, "a": 2}', '{"a": NaN}', '{"a": 1e999}', '{"a": "\\ud800"}', "[" * 9999])
def test_json_with_tricks_is_refused(tmp_path, content):
    save_set(tmp_path / "a.cset", make_set())
    (tmp_path / "a.cset" / "manifest.json").write_text(content)
    refused("is not valid JSON", tmp_path / "a.cset")


def test_links_are_refused(tmp_path):
    save_set(tmp_path / "a.cset", make_set())
    data = tmp_path / "a.cset" / "data.safetensors"
    data.rename(tmp_path / "elsewhere")
    data.symlink_to(tmp_path / "elsewhere")
    refused("is a link", tmp_path / "a.cset")
    save_set(tmp_path / "b.safetensors", make_set())
    (tmp_path / "own.safetensors").symlink_to(tmp_path / "b.safetensors")  # the user's, not the file's
    assert len(load_set(tmp_path / "own.safetensors")) == 6


def header(entries, body=b"", length=None):
    text = json.dumps(entries).encode() if isinstance(entries, dict) else entries
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cut short"),
        (header({}, length=2**31), "header is said to have 2147483648 bytes"),
        (header({}, length=2**63), "header is said"),
        (header(b"[]"), "not an object"),
        (header(b'{"a": {}, "a": {}}'), "occurs twice"),
        (header({"__metadata__": {"a": 1}}), "metadata"),
        (header({"a": entry("U8", offsets=(0, 1))}, b"\0"), "of type 'U8'"),
        (header({"a": entry(shape=(2,))}, bytes(4)), "takes another number"),
        (header({"a": entry(shape=(2**40, 2**40, 0), offsets=(0, 4))}, bytes(4)), "takes another number"),
        (header({"a": entry(shape=(-1,), offsets=(0, -4))}, bytes(4)), "no whole numbers"),
        (header({"a": entry(shape=(True,))}, bytes(4)), "no whole numbers"),
        (header({"a": entry(shape=(1,) * 9)}, bytes(4)), "9 dimensions"),
        (header({"a": entry(), "b": entry()}, bytes(4)), "overlap"),
        (header({"a": entry(), "b": entry(offsets=(8, 12))}, bytes(12)), "gap"),
        (header({"a": entry()}, bytes(8)), "accounts for 4"),
        (header({"a": entry(offsets=(4, 8))}, bytes(4)), "gap"),
        (header({"a": entry()}, struct.pack("<f", float("nan"))), "NaN"),
        (header({"a": [1]}), "not described"),
    ],
)
def test_safetensors_with_tricks_are_refused(content, message):
    with pytest.raises(UserError, match=message) as error:
        read_safetensors(content, "it")
    assert "\n" not in str(error.value)


def test_headers_of_any_length_are_no_pickles():
    for padding in range(256):
        content = header(json.dumps({"a": entry()}).encode() + b" " * padding, bytes(4))
        assert read_safetensors(content, "it")[0]["a"].item() == 0


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "c:x", "a\n", "\0"])
def test_names_that_leave_the_folder_are_no_plain_names(name):
    assert not is_plain_name(name) and is_plain_name("data.safetensors")
