"""VQA's official accuracy and its normalisation of answers, as the official evaluation program does it.

Written after the public behaviour of the VQA evaluation code; tested on answers that it was run on.
"""

import re
from collections import Counter
from collections.abc import Sequence

_SIGNS = (";", "/", "[", "]", '"', "{", "}", "(", ")", "=", "+", "\\", "_", "-", ">", "<", "@", "`", ",", "?", "!")
_DIGIT_COMMA = re.compile(r"\d,\d")
_STOPS = re.compile(r"\.(?!\d)")
_NUMBERS = {word: str(n) for n, word in enumerate(
    ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
)} | {"none": "0"}  # fmt: skip
_ARTICLES = {"a", "an", "the"}
# Words that lost their apostrophe. Entries whose own spelling holds a capital never match lower-case words.
_APOSTROPHES = {
    "aint": "ain't", "arent": "aren't", "cant": "can't", "couldve": "could've", "couldnt": "couldn't",
    "couldn'tve": "couldn't've", "couldnt've": "couldn't've", "didnt": "didn't", "doesnt": "doesn't", "dont": "don't",
    "hadnt": "hadn't", "hadnt've": "hadn't've", "hadn'tve": "hadn't've", "hasnt": "hasn't", "havent": "haven't",
    "hed": "he'd", "hed've": "he'd've", "he'dve": "he'd've", "hes": "he's", "howd": "how'd", "howll": "how'll",
    "hows": "how's", "isnt": "isn't", "itd": "it'd", "itd've": "it'd've", "it'dve": "it'd've", "itll": "it'll",
    "let's": "let's", "maam": "ma'am", "mightnt": "mightn't", "mightnt've": "mightn't've",
    "mightn'tve": "mightn't've", "mightve": "might've", "mustnt": "mustn't", "mustve": "must've", "neednt": "needn't",
    "notve": "not've", "oclock": "o'clock", "oughtnt": "oughtn't", "ow's'at": "'ow's'at", "'ows'at": "'ow's'at",
    "'ow'sat": "'ow's'at", "shant": "shan't", "shed've": "she'd've", "she'dve": "she'd've", "she's": "she's",
    "shouldve": "should've", "shouldnt": "shouldn't", "shouldnt've": "shouldn't've", "shouldn'tve": "shouldn't've",
    "somebody'd": "somebodyd", "somebodyd've": "somebody'd've", "somebody'dve": "somebody'd've",
    "somebodyll": "somebody'll", "somebodys": "somebody's", "someoned": "someone'd", "someoned've": "someone'd've",
    "someone'dve": "someone'd've", "someonell": "someone'll", "someones": "someone's", "somethingd": "something'd",
    "somethingd've": "something'd've", "something'dve": "something'd've", "somethingll": "something'll",
    "thats": "that's", "thered": "there'd", "thered've": "there'd've", "there'dve": "there'd've",
    "therere": "there're", "theres": "there's", "theyd": "they'd", "theyd've": "they'd've", "they'dve": "they'd've",
    "theyll": "they'll", "theyre": "they're", "theyve": "they've", "twas": "'twas", "wasnt": "wasn't",
    "wed've": "we'd've", "we'dve": "we'd've", "weve": "we've", "werent": "weren't", "whatll": "what'll",
    "whatre": "what're", "whats": "what's", "whatve": "what've", "whens": "when's", "whered": "where'd",
    "wheres": "where's", "whereve": "where've", "whod": "who'd", "whod've": "who'd've", "who'dve": "who'd've",
    "wholl": "who'll", "whos": "who's", "whove": "who've", "whyll": "why'll", "whyre": "why're", "whys": "why's",
    "wont": "won't", "wouldve": "would've", "wouldnt": "wouldn't", "wouldnt've": "wouldn't've",
    "wouldn'tve": "wouldn't've", "yall": "y'all", "yall'll": "y'all'll", "y'allll": "y'all'll",
    "yall'd've": "y'all'd've", "y'alld've": "y'all'd've", "y'all'dve": "y'all'd've", "youd": "you'd",
    "youd've": "you'd've", "you'dve": "you'd've", "youll": "you'll", "youre": "you're", "youve": "you've",
}  # fmt: skip


def normalize_answer(answer: str, *, commas: bool = True) -> str:
    """An answer as the official accuracy compares it.

    Signs are removed where they touch a blank somewhere in the answer (or where the answer holds a number such as
    2,000), else become blanks; stops that no digit follows go; words of numbers become digits; articles go; lost
    apostrophes come back.

    Args:
        answer: any text.
        commas: whether commas stay as they come out; ViLT's own variant deletes them.

    Example:
        >>> normalize_answer("Two dogs.")
        '2 dogs'
    """
    text = answer.replace("\n", " ").replace("\t", " ").strip()
    found = text
    joined = bool(_DIGIT_COMMA.search(text))
    for sign in _SIGNS:
        remove = f"{sign} " in text or f" {sign}" in text or joined
        found = found.replace(sign, "" if remove else " ")
    words = _STOPS.sub("", found).lower().split()
    words = [_NUMBERS.get(word, word) for word in words]
    result = " ".join(_APOSTROPHES.get(word, word) for word in words if word not in _ARTICLES)
    return result if commas else result.replace(",", "")


def vqa_accuracy(answer: str, people: Sequence[str]) -> float:
    """Official accuracy of an answer against those of ten people, in [0, 1].

    For each person, ``min(1, matches among the others / 3)``; the mean. Both sides are normalized only where the
    people do not all agree.

    Args:
        answer: the predicted answer.
        people: the answers, ten as a rule.

    Example:
        >>> round(vqa_accuracy("yes", ["yes"] * 3 + ["no"] * 7), 6)
        0.9
    """
    theirs = [text.replace("\n", " ").replace("\t", " ").strip() for text in people]
    ours = answer.replace("\n", " ").replace("\t", " ").strip()
    if len(set(theirs)) > 1:
        theirs, ours = [normalize_answer(text) for text in theirs], normalize_answer(ours)
    matches = Counter(theirs)[ours]
    scores = [min(1.0, (matches - (text == ours)) / 3) for text in theirs]
    return sum(scores) / len(scores)


def soft_score(count: int) -> float:
    """Training target of an answer that ``count`` of ten people gave: 0.3, 0.6, 0.9, then 1."""
    return (0.0, 0.3, 0.6, 0.9)[count] if count < 4 else 1.0
