"""Texts of entities and relations, joined by id; where there is none, words made from the id itself."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tenfold.systems.graph_fusion.graph.tables import Place, find_file, read_json_file, read_lines, read_pairs

_LITERAL_BODY = re.compile(r"[-+]?\d[\d.,:_-]*")


@dataclass
class Texts:
    """What files say about ids.

    Attributes:
        names: text by entity id.
        descriptions: longer text by entity id.
        relations: text by relation id.
        sources: files that were read.
    """

    names: dict[str, str] = field(default_factory=dict)
    descriptions: dict[str, str] = field(default_factory=dict)
    relations: dict[str, str] = field(default_factory=dict)
    sources: list[str] = field(default_factory=list)


def read_texts(folder: Place, *, long: bool = False, language: str = "en") -> Texts:
    """Read every text file of a folder that one of the known layouts has.

    Args:
        folder: of the graph, or one that holds only texts.
        long: read ``entity2textlong.txt``, too. UMLS's holds wrong Wikipedia pages, so it is left out by default.
        language: of CoDEx's labels.
    """
    texts = Texts()

    def take(into: dict[str, str], pairs: Iterable[tuple[str, str]], source: Place) -> None:
        into.update((key, value) for key, value in pairs if value.strip())
        texts.sources.append(source.name)

    for names in (
        ("entity2text.txt", "fb-entity2text-new.txt", "wn-entity2text-new.txt"),
        ("labels.tsv", "entity_labels.tsv"),
    ):
        if (path := find_file(folder, *names)) is not None:
            take(texts.names, read_pairs(path), path)
    if (path := find_file(folder, "FB15k_mid2name.txt")) is not None:
        take(texts.names, ((key, name.replace("_", " ")) for key, name in read_pairs(path)), path)
    if (path := find_file(folder, "FB15k_mid2description.txt")) is not None:
        take(texts.descriptions, ((key, _without_language(text)) for key, text in read_pairs(path)), path)
    if (path := find_file(folder, "wordnet-mlj12-definitions.txt")) is not None:
        take_wordnet(texts, path)
    if (path := find_file(folder, "wikidata5m_entity.txt")) is not None:
        take(texts.names, ((key, text.split("\t")[0]) for key, text in read_pairs(path)), path)
    if (path := find_file(folder, "wikidata5m_text.txt")) is not None:
        take(texts.descriptions, read_pairs(path), path)
    if (path := find_file(folder, "wikidata5m_relation.txt")) is not None:
        take(texts.relations, ((key, text.split("\t")[0]) for key, text in read_pairs(path)), path)
    if (path := find_file(folder, "relation2text.txt")) is not None:
        take(texts.relations, read_pairs(path), path)
    if long and (path := find_file(folder, "entity2textlong.txt")) is not None:
        take(texts.descriptions, read_pairs(path), path)
    _take_codex(texts, folder, language)
    _split_wordnet(texts)
    return texts


def read_text_file(path: Place) -> dict[str, str]:
    """A user's own file of ``id TAB text``."""
    return dict(read_pairs(path))


def _without_language(text: str) -> str:
    """``"text"@en`` without quotes and language."""
    found = re.fullmatch(r'"(.*)"(?:@\w+)?', text, re.S)
    return found[1].replace('\\"', '"').replace("\\n", " ") if found else text


def take_wordnet(texts: Texts, path: Place) -> None:
    """``id TAB __lemma_POS_n TAB definition``."""
    for line in read_lines(path):
        key, _, rest = line.partition("\t")
        lemma, _, definition = rest.partition("\t")
        texts.names[key] = re.sub(r"^__|_[A-Z]+_\d+$", "", lemma).replace("_", " ")
        texts.descriptions[key] = definition
    texts.sources.append(path.name)


def _take_codex(texts: Texts, folder: Place, language: str) -> None:
    """CoDEx keeps its texts in ``data/entities`` beside ``data/triples``."""
    above: list[Place] = [folder.parent.parent] if isinstance(folder, Path) else []
    for base in (folder, folder / "data", *above):
        entities, relations = (base / kind / language / f"{kind}.json" for kind in ("entities", "relations"))
        if entities.is_file():
            for key, values in read_json_file(entities).items():
                texts.names[key] = values.get("label") or key
                if values.get("description"):
                    texts.descriptions[key] = values["description"]
            if relations.is_file():
                for key, values in read_json_file(relations).items():
                    texts.relations[key] = values.get("label") or key
            texts.sources.append(entities.name)
            return


def _split_wordnet(texts: Texts) -> None:
    """WN18RR's texts are ``lemma, definition`` under ids of eight digits: the lemma is the name."""
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
