"""Files: whole or not at all, one line for what cannot be read, and no way out of a folder."""

import json
import os
import resource
import signal
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from tenfold.errors import UserError
from tenfold.files import (
    atomic_path,
    files_below,
    inside,
    printable,
    read_bytes,
    read_json,
    read_text,
    read_yaml,
    refuse_overwriting,
    sha256_of,
    write_atomically,
)


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    write_atomically(tmp_path / "a.txt", "one")
    write_atomically(tmp_path / "a.txt", b"two")
    assert (tmp_path / "a.txt").read_text() == "two"
    (tmp_path / "folder").mkdir()
    for place in (tmp_path / "folder", tmp_path / "missing" / "a.txt", tmp_path / ("n" * 300)):
        with pytest.raises(UserError, match="cannot write"):
            write_atomically(place, "x")
    with pytest.raises(KeyError), atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise KeyError
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "folder"]
    assert (tmp_path / "a.txt").read_text() == "two"


NAMES_THAT_LEAVE = ["", "..", "../Documents", "a/../../b", "/etc/passwd", "C:\\x", "\\\\host\\x", "a\0b", "..\\x"]


@pytest.mark.parametrize("name", NAMES_THAT_LEAVE)
def test_no_name_leaves_its_folder(tmp_path, name):
    with pytest.raises(UserError, match="leaves the folder"):
        inside(tmp_path, name)


@given(st.text(max_size=40))
def test_whatever_the_name_the_path_is_inside_or_refused(tmp_path_factory, name):
    folder = tmp_path_factory.getbasetemp()
    try:
        path = inside(folder, name)
    except (UserError, OSError):
        return
    assert path.resolve().is_relative_to(folder.resolve())


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path)
    with pytest.raises(UserError, match="link out"):
        inside(tmp_path / "in", "link/secret")
    assert inside(tmp_path / "in", "a/b") == tmp_path / "in" / "a/b"
    (tmp_path / "in" / "round").symlink_to(tmp_path / "in" / "round")
    with pytest.raises(UserError, match="in a circle"):
        inside(tmp_path / "in", "round")


def test_what_never_ends_is_not_read(tmp_path):
    """Devices and pipes under the names of files: refused at once, wherever they are read."""
    os.mkfifo(tmp_path / "pipe")
    for path in (Path("/dev/zero"), tmp_path / "pipe"):
        for read in (read_bytes, read_text, read_json, read_yaml, sha256_of):
            with pytest.raises(UserError, match="a device or a pipe"):
                read(path)
    with pytest.raises(UserError, match="a device or a pipe"):
        inside(tmp_path, "pipe")
    assert read_bytes("/dev/null") == b""


def test_the_file_that_is_read_is_not_written_over(tmp_path):
    (tmp_path / "table.csv").write_text("a")
    os.link(tmp_path / "table.csv", tmp_path / "other.csv")
    for out in ("table.csv", "./table.csv", "other.csv"):
        with pytest.raises(UserError, match="is the file that is read"):
            refuse_overwriting(tmp_path / out, tmp_path / "table.csv")
    refuse_overwriting(tmp_path / "new.csv", tmp_path / "table.csv")


def test_what_cannot_be_read_gets_one_line(tmp_path):
    (tmp_path / "text").write_bytes(b"one\ntw\xffo")
    with pytest.raises(UserError, match="line 2 holds the byte 0xff"):
        read_text(tmp_path / "text")
    with pytest.raises(UserError, match="more than 3 bytes"):
        read_bytes(tmp_path / "text", limit=3)
    for path in (tmp_path / "missing", tmp_path, tmp_path / ("n" * 300), "nul\0l"):
        with pytest.raises(UserError, match="cannot read"):
            read_bytes(path)
    (tmp_path / "deep").write_text("[" * 200_000)
    for read in (read_json, read_yaml):
        with pytest.raises(UserError, match="is not"):
            read(tmp_path / "deep")
    (tmp_path / "laughs").write_text("a: &a [1]\nb: [*a, *a]\n")
    with pytest.raises(UserError, match="alias"):
        read_yaml(tmp_path / "laughs")


@given(st.text())
def test_nothing_reaches_a_terminal_that_acts_on_it(text):
    shown = printable(text)
    assert all(ord(character) >= 32 and not 0x7F <= ord(character) < 0xA0 for character in shown)
    assert len(shown) <= 303


def test_texts_for_people_stay_as_they_are():
    assert printable("Straße 京都 é") == "Straße 京都 é"
    assert printable("a\x1b[2Jb\u202e") == "a\\x1b[2Jb\\u202e"
    assert json.loads(json.dumps(printable("x" * 1000))).count("x") == 300


def test_a_folder_is_walked_in_order_and_a_whole_disk_is_not(tmp_path, monkeypatch):
    for name in ("b/2.jpg", "b/1.jpg", "a/x/3.JPG", "a/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    found, others = files_below(tmp_path, lambda path: path.suffix.lower() == ".jpg")
    names = [path.relative_to(tmp_path).as_posix() for path in found]
    assert names == ["a/x/3.JPG", "b/1.jpg", "b/2.jpg", "gone.jpg"] and [path.name for path in others] == ["notes.txt"]
    monkeypatch.setattr("tenfold.files._MOST_OTHERS", 0)
    with pytest.raises(UserError, match="name a folder of these alone"):
        files_below(tmp_path, lambda path: False)
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(UserError, match="is a device or a pipe"):
        files_below(tmp_path, lambda path: path.suffix == ".jpg")


def test_a_disk_that_fills_while_torch_writes_is_one_line(tmp_path):
    """Torch's writer raises a RuntimeError of its own; the file that was there stays."""
    target = tmp_path / "best.pt"
    target.write_bytes(b"before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        for write in (torch.save, lambda value, path: save_file({"value": value}, path)):
            with pytest.raises(UserError, match=r"cannot write \S*best\.pt: [^\n]*$"), atomic_path(target) as temporary:
                write(torch.zeros(100_000), temporary)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in tmp_path.iterdir()] == ["best.pt"] and target.read_bytes() == b"before"
