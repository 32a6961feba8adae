"""Packing, encoders, extractors: every sentence one score, whatever stands beside it."""

import json

import pytest
import torch
from safetensors.torch import save_file

from tenfold.errors import UserError
from tenfold.systems.query_summarizer.encoders.bert import Bert, BertShape
from tenfold.systems.query_summarizer.encoders.local_folder import load_encoder, own_encoder
from tenfold.systems.query_summarizer.encoders.sentence_vectors import HashedVectors, load_sentence_vectors
from tenfold.systems.query_summarizer.extractor.baselines import CosineExtractor, TfIdfExtractor
from tenfold.systems.query_summarizer.extractor.build_extractor import build_from_manifest, description_of
from tenfold.systems.query_summarizer.extractor.fast_scorer import FastExtractor, FastScorer
from tenfold.systems.query_summarizer.extractor.pack_windows import Packing, collate_windows, merge_scores, pack_windows
from tenfold.systems.query_summarizer.extractor.qbert import QBert
from tenfold.systems.query_summarizer.extractor.summarizer import QuerySummarizer
from tenfold.systems.query_summarizer.extractor.window_batches import TokenWindows, single_windows
from tenfold.systems.query_summarizer.method import choose_subnetwork, objective
from tenfold.systems.query_summarizer.rouge.scoring import Rouge
from tenfold.systems.query_summarizer.sets.generated import generate_topics
from tenfold.systems.query_summarizer.text.sentences import document_of, document_of_sentences
from tenfold.systems.query_summarizer.text.wordpiece import SPECIAL, WordPiece, make_vocabulary


@pytest.fixture(scope="module")
def topics():
    return generate_topics(4, 1)


@pytest.fixture(scope="module")
def qbert(topics):
    tokenizer = make_vocabulary([text for topic in topics for text in (topic.query, *topic.texts)], 300)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 80}
    torch.manual_seed(0)
    return QBert(own_encoder(tokenizer, 0, **sizes), tokenizer, Packing(80, 12, 30), inter_layers=2).eval()


def test_windows_hold_every_sentence_once_and_never_the_query_as_a_candidate(qbert):
    documents = [[[20] * n for n in (3, 40, 7, 9)], [[21] * 5, [], [22] * 3]]
    windows = pack_windows(list(range(10, 30)), documents, qbert.tokenizer, Packing(80, 12, 30))
    assert sorted(number for window in windows for number in window.sentences) == list(range(7))
    for window in windows:
        assert len(window.ids) <= 80
        assert window.ids[0] == qbert.tokenizer.cls
        assert 0 not in window.cls
        assert all(window.ids[place] == qbert.tokenizer.cls for place in window.cls)
        assert window.ids[-1] == qbert.tokenizer.sep
        assert window.types[window.cls[0]] == 1
        assert window.types[0] == 0
    starts = [window.sentences[0] for window in windows]
    assert 4 in starts  # a document begins a new window
    pair = pack_windows([10], documents, qbert.tokenizer, Packing(80, 12, 30, "pair"))
    assert all(set(window.types[window.cls[0] :]) == {1} for window in pair)
    twice = pack_windows([10], documents, qbert.tokenizer, Packing(50, 12, 30, overlap=1))
    assert len([n for window in twice for n in window.sentences]) > 7
    places = [torch.tensor([float(place) for place in window.cls]) for window in windows]
    assert merge_scores(windows, places, 7).tolist() == [float(p) for w in windows for p in w.cls]


def test_scores_do_not_depend_on_batch_mates_and_padding(qbert, topics):
    topic = topics[0]
    together = qbert.score(topic.query, topic.documents)
    alone = torch.cat([qbert.score(topic.query, [document]) for document in topic.documents])
    assert together.shape == (len(topic.texts),)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        qbert.score(topic.query, topic.documents, tokens_per_batch=1), together, rtol=0, atol=1e-5
    )
    assert not torch.allclose(qbert.score("Something else entirely", topic.documents), together)
    windows = qbert.windows(topic.query, topic.documents)
    padded = collate_windows([windows[0], windows[-1]], qbert.tokenizer.pad)
    assert padded["there"].sum() == len(windows[0].cls) + len(windows[-1].cls)


def test_a_query_that_is_longer_than_the_windows_hold_is_refused_or_cut_on_request(qbert, topics):
    text = " ".join(topics[0].texts[:3])
    question = " ".join(["bridge"] * 40)
    summarizer = QuerySummarizer(qbert)
    with pytest.raises(UserError, match="word pieces longer than this extractor reads"):
        summarizer.summarize(question, [text])
    assert summarizer.summarize(question, [text], cut_query=True).quotes


def test_the_query_matters():
    """Queries exchanged between topics must give worse summaries."""
    topics, rouge, scorer = generate_topics(12, 7), Rouge(["ROUGE-2"], limit=40, stem="none"), QuerySummarizer()
    own, others = (
        sum(
            rouge.score(scorer.summarize(asked.query, topic.documents, words=40).lines, topic.references)[
                "ROUGE-2"
            ].recall
            for topic, asked in zip(topics, order, strict=True)
        )
        for order in (topics, topics[1:] + topics[:1])
    )
    assert own > 1.5 * others


def test_the_first_loss_is_the_entropy_of_the_prior(topics):
    scorer = FastScorer(16, 8, 1, 2, prior=0.2)
    torch.nn.init.zeros_(scorer.head.weight)
    logits = scorer.head(torch.zeros(1, 8))
    assert torch.sigmoid(logits).item() == pytest.approx(0.2)


def test_a_subnetwork_of_qbert_is_chosen_and_windows_carry_their_labels(qbert, topics):
    labels = [[float(n % 3 == 0) for n in range(len(topic.texts))] for topic in topics[:2]]
    batches = TokenWindows(qbert, topics[:2], labels, 4, seed=0)
    given = sum(int(batches.batch(torch.tensor([n]))["labels"].sum()) for n in range(batches.samples))
    assert given == sum(map(sum, labels))
    mask = choose_subnetwork(qbert, single_windows(batches, 3), fraction=0.02)
    assert mask.chosen == mask.wanted
    assert not any(name.startswith("head.") for name in mask.entries)
    loss, _ = objective(qbert, batches.batch(torch.tensor([0, 1])))
    assert loss.isfinite()
    choose_subnetwork(qbert, single_windows(batches, 1), criterion="fisher_sampled")


def test_model_folders_rebuild_both_kinds(qbert, topics):
    for model in (qbert, FastScorer(16, 8, 1, 2).eval()):
        builder, arguments, extra = description_of(model, "hashed-16")
        again = build_from_manifest(builder, json.loads(json.dumps(arguments)), json.loads(json.dumps(extra)))
        again.load_state_dict(model.state_dict())
        if isinstance(model, QBert):
            topic = topics[0]
            assert torch.equal(
                again.eval().score(topic.query, topic.documents), model.score(topic.query, topic.documents)
            )
    with pytest.raises(UserError, match="no extractor"):
        build_from_manifest("other", {}, {})


def test_the_fast_extractor_scores_long_documents_and_masks_the_query(topics):
    torch.manual_seed(0)
    extractor = FastExtractor(FastScorer(16, 8, 1, 2).eval(), HashedVectors(16))
    long = document_of_sentences([f"Sentence number {n} of this long story is here." for n in range(150)])
    scores = extractor.score("story number 7", [long, topics[0].documents[0]])
    assert scores.shape == (150 + len(topics[0].documents[0].sentences),)
    alone = extractor.score("story number 7", [long])
    assert not torch.allclose(alone, extractor.score("story number 7", [long], masked=True))


def test_a_bert_from_a_folder_is_transformers_bert(tmp_path, topics):
    transformers = pytest.importorskip("transformers")
    vocabulary = [
        *SPECIAL,
        *sorted({w for t in topics for w in make_vocabulary(t.texts, 200).vocabulary} - set(SPECIAL)),
    ]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    config = transformers.BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=40,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = transformers.BertModel(config).eval()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", **config.to_dict()}))
    old = {
        f"bert.{n}".replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): v.clone()
        for n, v in theirs.state_dict().items()
    }
    save_file(old, tmp_path / "model.safetensors")
    ours, tokenizer = load_encoder(tmp_path)
    assert isinstance(ours, Bert)
    text = "The OLD harbour, Borvik's café opened in 1873 -- was it?"
    ids = torch.tensor([[tokenizer.cls, *tokenizer.encode(text), tokenizer.sep]])
    their_words = transformers.BertTokenizer(str(tmp_path / "vocab.txt"))
    assert ids[0].tolist() == their_words(text)["input_ids"]
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[:, -2:] = False
    with torch.no_grad():
        hidden = theirs(
            input_ids=ids, attention_mask=mask.long(), token_type_ids=torch.zeros_like(ids)
        ).last_hidden_state
        torch.testing.assert_close(ours(ids, torch.zeros_like(ids), mask)[mask], hidden[mask], rtol=0, atol=1e-5)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no weights"):
        load_encoder(tmp_path)


def test_wordpiece_splits_as_published():
    tokenizer = WordPiece([*SPECIAL, "un", "##aff", "##able", "a", "##b", ",", "."])
    words = tokenizer.vocabulary
    assert [words[n] for n in tokenizer.encode("Unaffable, AB xyz.")] == [
        "un",
        "##aff",
        "##able",
        ",",
        "a",
        "##b",
        "[UNK]",
        ".",
    ]
    with pytest.raises(UserError, match=r"lacks \[MASK\]"):
        WordPiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])


def test_without_a_model_similarity_answers():
    documents = [
        document_of("Rain fell all day. The bridge was closed by a storm. Nobody came."),
        document_of("A storm is wind."),
    ]
    for extractor in (TfIdfExtractor(), CosineExtractor(HashedVectors(64))):
        scores = extractor.score("Why was the bridge closed?", documents)
        assert scores.argmax() == 1
        assert extractor.score("", documents, masked=True).shape == (4,)
    summary = QuerySummarizer().summarize("Why was the bridge closed?", documents, words=8, explain=True)
    (quote,) = summary.quotes
    assert documents[0].text[quote.start : quote.end] == quote.text
    assert summary.scorer == "tfidf"
    assert quote.without_query is not None
    pruned = QuerySummarizer().process(
        "Why was the bridge closed?", [documents[0].text, documents[1].text], threshold=0.3
    )
    assert pruned["pruned_context"] == ["The bridge was closed by a storm.", ""]
    assert 0 < pruned["compression_rate"] < 100


def test_hashed_vectors_are_the_same_everywhere():
    vectors = HashedVectors(8).encode(["The bridge", "of the"])
    assert vectors[1].tolist() == [0.0] * 8
    assert vectors[0].norm().item() == pytest.approx(1.0)
    assert vectors[0, 0].item() == pytest.approx(HashedVectors(8).encode(["bridge"])[0, 0].item())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: QuerySummarizer().summarize(" ", ["A text."]), "query is empty"),
        (lambda: QuerySummarizer().summarize("a", ["  "]), "is empty"),
        (lambda: QuerySummarizer().summarize("a", []), "no document"),
        (lambda: QuerySummarizer().summarize("a", "text"), "a list"),
        (lambda: Packing(50, 64, 96), "does not hold"),
        (lambda: load_sentence_vectors("hashed-1"), "between 8 and 4096"),
        (lambda: load_sentence_vectors("nowhere"), "holds no encoder"),
        (lambda: BertShape(hidden_size=10, num_attention_heads=3), "evenly"),
    ],
)
def test_what_makes_no_sense_is_refused(call, words):
    with pytest.raises(UserError, match=words) as error:
        call()
    assert "\n" not in str(error.value)


def test_a_sentence_of_ten_thousand_words_gets_one_score(qbert):
    documents = [document_of("word " * 10_000 + "end. A short one follows here.")]
    assert qbert.score("word " * 500, documents).shape == (2,)
