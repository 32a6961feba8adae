"""AQuaMuse (Kulkarni et al., 2020): TFRecords of queries, targets and addresses; texts come from a page provider."""

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from tenfold.errors import UserError
from tenfold.files import regular
from tenfold.systems.query_summarizer.sets.topic import Topic
from tenfold.systems.query_summarizer.text.sentences import document_of, split_sentences

FetchText = Callable[[str], str | None]


def read_aquamuse(
    folder: str | Path, split: str, fetch: FetchText, kind: str = "abstractive"
) -> tuple[list[Topic], int]:
    """Topics whose pages are all or partly there, and how many were left out because none is.

    Args:
        folder: holds ``abstractive/`` and ``extractive/`` with ``train``, ``dev`` and ``test``.
        split: one of these.
        fetch: text of a page by its address, or ``None``; see ``tenfold.systems.query_summarizer.wikiref.pages``.
        kind: ``abstractive`` or ``extractive``.

    Raises:
        UserError: the records are missing or damaged.
    """
    place = Path(folder) / kind / split
    files = (
        sorted(file for file in place.rglob("*") if file.is_file())
        if place.is_dir()
        else sorted(place.parent.glob(f"{split}*"))
    )
    if not files:
        raise UserError(f"{Path(folder) / kind} holds no records of {split!r}")
    topics, missing = [], 0
    for file in files:
        for number, features in enumerate(read_tfrecords(file)):
            query, target = (b" ".join(features.get(name, [])).decode("utf-8") for name in ("query", "target"))
            urls = [u.strip() for u in b"<EOD>".join(features.get("input_urls", [])).decode("utf-8").split("<EOD>")]
            texts = {url: text for url in urls if url and (text := fetch(url))}
            documents = tuple(d for url, text in texts.items() if (d := document_of(text, url)).sentences)
            if not documents:
                missing += 1
                continue
            references = (tuple(sentence.text for sentence in split_sentences(target)),)
            topics.append(Topic(f"{file.name}-{number}", query, documents, references, group=query))
    return topics, missing


def read_tfrecords(path: Path) -> Iterator[dict[str, list[bytes]]]:
    """Byte features of each ``tf.train.Example`` of a TFRecord file, without TensorFlow.

    Raises:
        UserError: the file is cut short or no TFRecord file.
    """
    content = regular(path).read_bytes()
    place = 0
    while place < len(content):
        if place + 12 > len(content):
            raise UserError(f"{path} is cut short: copy or download it again")
        (size,) = struct.unpack_from("<Q", content, place)
        record = content[place + 12 : place + 12 + size]
        if len(record) < size or place + 16 + size > len(content):
            raise UserError(f"{path} is cut short, or no file of TFRecords")
        place += 16 + size
        try:
            yield _features(record)
        except (IndexError, ValueError, KeyError) as error:
            raise UserError(f"{path} holds a damaged record") from error


def _features(record: bytes) -> dict[str, list[bytes]]:
    found: dict[str, list[bytes]] = {}
    for _, features in _fields(record):
        for _, entry in _fields(features):
            parts = dict(_fields(entry))  # 1: the name, 2: the feature
            lists = dict(_fields(parts.get(2, b"")))  # 1: a list of bytes
            found[parts[1].decode("utf-8")] = [value for _, value in _fields(lists.get(1, b""))]
    return found


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Length-delimited fields of a protocol buffer; others are passed over."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        if key & 7 == 2:
            size, place = _varint(message, place)
            if place + size > len(message):
                raise ValueError("cut short")
            yield key >> 3, message[place : place + size]
            place += size
        elif key & 7 == 0:
            _, place = _varint(message, place)
        else:
            place += 4 if key & 7 == 5 else 8


def _varint(message: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place
