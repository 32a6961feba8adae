"""Texts of entities and relations, joined by id; where there is none, words made from the id itself."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tenfold.errors import UserError
from tenfold.systems.graph_fusion.graph.tables import Place, find_file, numbered_lines, read_json_file, read_pairs

_LITERAL_BODY = re.compile(r"[-+]?\d[\d.,:_-]*")


@dataclass(frozen=True)
class TextRules:
    """How texts are read.

    Attributes:
        long: read ``entity2textlong.txt``, too. UMLS's holds wrong Wikipedia pages, so it is left out by default.
        language: of CoDEx's and N-Triples' labels.
        repeated: ``refuse`` a second text of an id in one file, or ``drop`` all but the first.
    """

    long: bool = False
    language: str = "en"
    repeated: Literal["refuse", "drop"] = "refuse"


@dataclass
class Texts:
    """What files say about ids.

    Attributes:
        names: text by entity id.
        descriptions: longer text by entity id.
        relations: text by relation id.
        sources: files that were read.
        notes: what was left out.
    """

    names: dict[str, str] = field(default_factory=dict)
    descriptions: dict[str, str] = field(default_factory=dict)
    relations: dict[str, str] = field(default_factory=dict)
    sources: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def take(
        self,
        kind: Literal["names", "descriptions", "relations"],
        rows: Iterable[tuple[int, str, str]],
        source: Place,
        rules: TextRules,
        *,
        over: bool = False,
    ) -> None:
        """Add the texts of one file; the same text of an id twice counts once.

        Args:
            kind: which texts they are.
            rows: line, id and text of each.
            source: the file.
            rules: what to do with an id that has two texts.
            over: whether these texts replace those of other files.

        Raises:
            UserError: an id has two texts, and that is refused; or there is no text at all.
        """
        found: dict[str, tuple[int, str]] = {}
        further = blank = 0
        for line, key, text in rows:
            if not text.strip():
                blank += 1
                continue
            first = found.setdefault(key, (line, text))
            if first[1] != text:
                if rules.repeated == "refuse":
                    raise UserError(
                        f"{source} line {line}: the id {key!r} has another text in line {first[0]}; take one out, or "
                        "keep the first with --data.duplicates drop"
                    )
                further += 1
        if not found:
            raise UserError(f"{source} holds no texts")
        if blank:
            self.notes.append(f"{blank:,} lines of {source.name} hold an id without a text.")
        if further:
            self.notes.append(f"{further:,} second texts of ids in {source.name} were left out.")
        own: dict[str, str] = getattr(self, kind)
        for key, (_, text) in found.items():
            if over or key not in own:
                own[key] = text
        self.sources.append(source.name)


def read_texts(folder: Place, rules: TextRules | None = None) -> Texts:
    """Read every text file of a folder that one of the known layouts has.

    Args:
        folder: of the graph, or one that holds only texts.
        rules: how they are read.

    Raises:
        UserError: a file is damaged, or an id has two texts.
    """
    rules, texts = rules or TextRules(), Texts()

    def changed(path: Place, change: Callable[[str], str]) -> Iterator[tuple[int, str, str]]:
        return ((line, key, change(text)) for line, key, text in read_pairs(path))

    def before_tab(text: str) -> str:
        return text.split("\t")[0]

    # Where two files name an id, the later of this list counts.
    if (path := find_file(folder, "entity2text.txt", "fb-entity2text-new.txt", "wn-entity2text-new.txt")) is not None:
        texts.take("names", read_pairs(path), path, rules)
    if (path := find_file(folder, "labels.tsv", "entity_labels.tsv")) is not None:
        texts.take("names", read_pairs(path), path, rules, over=True)
    if (path := find_file(folder, "FB15k_mid2name.txt")) is not None:
        texts.take("names", changed(path, lambda name: name.replace("_", " ")), path, rules, over=True)
    if (path := find_file(folder, "FB15k_mid2description.txt")) is not None:
        texts.take("descriptions", changed(path, _without_language), path, rules)
    if (path := find_file(folder, "wordnet-mlj12-definitions.txt")) is not None:
        take_wordnet(texts, path)
    if (path := find_file(folder, "wikidata5m_entity.txt")) is not None:
        texts.take("names", changed(path, before_tab), path, rules, over=True)
    if (path := find_file(folder, "wikidata5m_text.txt")) is not None:
        texts.take("descriptions", read_pairs(path), path, rules, over=True)
    if (path := find_file(folder, "wikidata5m_relation.txt")) is not None:
        texts.take("relations", changed(path, before_tab), path, rules)
    if (path := find_file(folder, "relation2text.txt")) is not None:
        texts.take("relations", read_pairs(path), path, rules, over=True)
    if rules.long and (path := find_file(folder, "entity2textlong.txt")) is not None:
        texts.take("descriptions", read_pairs(path), path, rules, over=True)
    _take_codex(texts, folder, rules.language)
    return texts


def read_text_file(path: Place) -> Iterator[tuple[int, str, str]]:
    """A user's own file of ``id TAB text``: line, id and text.

    Raises:
        UserError: a line has no tab; where its columns are separated otherwise, the message says what is meant.
    """
    if str(path).removesuffix(".gz").endswith(".csv"):
        raise UserError(f"{path}: texts are read from lines of an id, a tab and a text, not from CSV")
    return read_pairs(path)


def _without_language(text: str) -> str:
    """``"text"@en`` without quotes and language."""
    found = re.fullmatch(r'"(.*)"(?:@\w+)?', text, re.S)
    return found[1].replace('\\"', '"').replace("\\n", " ") if found else text


def take_wordnet(texts: Texts, path: Place) -> None:
    """``id TAB __lemma_POS_n TAB definition``."""
    for number, line in numbered_lines(path):
        key, _, rest = line.partition("\t")
        lemma, tab, definition = rest.partition("\t")
        if not tab:
            raise UserError(f"{path} line {number} is not an id, a lemma and a definition with tabs between them")
        texts.names[key] = re.sub(r"^__|_[A-Z]+_\d+$", "", lemma).replace("_", " ")
        texts.descriptions[key] = definition
    texts.sources.append(path.name)


def _take_codex(texts: Texts, folder: Place, language: str) -> None:
    """CoDEx keeps its texts in ``data/entities`` beside ``data/triples``."""
    above: list[Place] = [folder.parent.parent] if isinstance(folder, Path) else []
    for base in (folder, folder / "data", *above):
        entities, relations = (base / kind / language / f"{kind}.json" for kind in ("entities", "relations"))
        if entities.is_file():
            for key, label, description in _codex_labels(entities):
                texts.names[key] = label
                if description:
                    texts.descriptions[key] = description
            if relations.is_file():
                texts.relations.update({key: label for key, label, _ in _codex_labels(relations)})
            texts.sources.append(entities.name)
            return


def _codex_labels(path: Place) -> Iterator[tuple[str, str, str]]:
    """Id, label (or id) and description of each entry."""
    content = read_json_file(path)
    for key, values in content.items() if isinstance(content, dict) else [("", None)]:
        if not isinstance(values, dict):
            raise UserError(f"{path} is not a file of labels: it must map ids to labels and descriptions")
        yield key, str(values.get("label") or key), str(values.get("description") or "")


def split_wordnet(texts: Texts) -> None:
    """WordNet's texts are ``lemma, definition`` under ids of eight digits: the lemma is the name.

    Only for graphs with WordNet's relations: ids of eight digits alone say nothing.
    """
    if texts.names and not texts.descriptions and all(re.fullmatch(r"\d{8}", key) for key in texts.names):
        for key, text in list(texts.names.items()):
            lemma, comma, definition = text.partition(", ")
            if comma:
                texts.names[key], texts.descriptions[key] = lemma, definition


def entity_text_of_id(key: str) -> str:
    """Words of an entity id: NELL's ``concept_category_name``, IRIs, Freebase paths, names with underscores."""
    if key.startswith("concept_"):
        category, _, name = key.removeprefix("concept_").partition("_")
        # Dates and numbers are written n2000: their category says what they are.
        return f"{name.replace('_', ' ').strip() or category} ({category})"
    if _LITERAL_BODY.fullmatch(key):
        return key
    if "://" in key:
        key = re.split(r"[/#]", key.rstrip("/#"))[-1]
    return re.sub(r"[_\s]+", " ", key).strip() or key


def relation_text_of_id(key: str) -> str:
    """Words of a relation id: Freebase paths leaf first without near repetitions, NELL's prefix, IRIs, camel case."""
    if key.startswith("/"):
        return freebase_relation_text(key)
    key = key.removeprefix("concept:")
    if "://" in key:
        key = re.split(r"[/#]", key.rstrip("/#"))[-1]
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", key)
    return re.sub(r"[_:\s]+", " ", words).strip().lower() or key


def freebase_relation_text(path: str) -> str:
    """SimKGC's reading of a Freebase path: last words first, repetitions within 3 dropped."""
    tokens = [token for token in path.replace("./", "/").replace("_", " ").split("/") if token.strip()]
    kept: list[str] = []
    for token in tokens:
        if token not in kept[-3:]:
            kept.append(token)
    return " ".join(reversed(kept))


def text_for(key: str, texts: Mapping[str, str], make: str) -> str:
    """The text of an id, or words of the id itself; ``make`` is ``"entity"`` or ``"relation"``."""
    return texts.get(key) or (entity_text_of_id(key) if make == "entity" else relation_text_of_id(key))
