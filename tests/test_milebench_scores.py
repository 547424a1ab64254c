"""MileBench's scores: a table checked by hand, and what must hold for any text."""

from __future__ import annotations

import time
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from madakv.errors import ConfigurationError
from madakv.evaluation.milebench.scores import METRICS, official, rouge, score, strict

ANIMALS = ("cat", "dog", "red bird", "fish")
COLOURS = ("red", "dark red", "blue", "green")
TWINS = ("red-blue", "red blue", "green", "white")
COUNTS = ("1", "12", "2", "3")
DECIMALS = ("1.5", "2.5", "3.5", "4.5")
PRICES = ("$5", "$10", "$15", "$20")
REPLIES = ("no", "yes", "maybe", "later")
SIGNED = ("-3", "3", "5", "7")
THIRTY = tuple(f"word{place:02d}" for place in range(30))
NINETY = tuple(f"word{place:02d}" for place in range(90))


class Case(NamedTuple):
    name: str
    prediction: str
    gold: str
    official: float
    strict: float
    choices: tuple[str, ...] = ()


def library_f(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall + 1e-8)


ACCURACY = [
    Case("letter", "B", "dog", 1, 1, ANIMALS),
    Case("small letter", "b", "dog", 1, 1, ANIMALS),
    Case("letter and period", "B.", "dog", 1, 1, ANIMALS),
    Case("letter in brackets", "(B)", "dog", 1, 1, ANIMALS),
    Case("letter in bold", "**B**", "dog", 1, 1, ANIMALS),
    Case("other letter", "C", "dog", 0, 0, ANIMALS),
    Case("letter and text", "B. dog", "dog", 1, 1, ANIMALS),
    Case("letter, dash, text", "B - dog", "dog", 1, 1, ANIMALS),
    Case("letter on its own line", "B\nThe dog runs.", "dog", 1, 1, ANIMALS),
    Case("letter, then another option", "B because the cat sleeps", "dog", 0, 1, ANIMALS),
    Case("letter against text", "B. cat", "cat", 1, 0, ANIMALS),
    Case("letter against text, its option", "B. cat", "dog", 0, 0, ANIMALS),
    Case("text", "dog", "dog", 1, 1, ANIMALS),
    Case("text in capitals", "DOG", "dog", 1, 1, ANIMALS),
    Case("text in quotes", "'dog'", "dog", 1, 1, ANIMALS),
    Case("text in a sentence", "It is a dog.", "dog", 1, 1, ANIMALS),
    Case("text with an article", "A dog.", "dog", 1, 1, ANIMALS),
    Case("stated letter", "The answer is B.", "dog", 0, 1, ANIMALS),
    Case("stated A", "The answer is A.", "cat", 0, 1, ANIMALS),
    Case("stated A with a reason", "The answer is A since it moves", "cat", 0, 1, ANIMALS),
    Case("stated letter, wrong", "The answer is D.", "dog", 0, 0, ANIMALS),
    Case("stated small letter", "Answer: (b)", "dog", 0, 1, ANIMALS),
    Case("denied letter", "The answer is not B", "dog", 0, 0, ANIMALS),
    Case("letter at the end", "I would go for B", "dog", 0, 1, ANIMALS),
    Case("first initial", "I love D.C.", "fish", 0, 0, ANIMALS),
    Case("second initial", "I love D.C.", "red bird", 0, 0, ANIMALS),
    Case("stated A in bold", "Answer: **A**", "cat", 0, 1, ANIMALS),
    Case("hyphen for a blank", "It was a red-bird.", "red bird", 1, 1, ANIMALS),
    Case("two letters", "B, C", "dog", 0, 0, ANIMALS),
    Case("A or B", "A or B", "dog", 0, 0, ANIMALS),
    Case("two texts", "cat or dog", "cat", 1, 0, ANIMALS),
    Case("the list itself", "A. cat B. dog C. red bird D. fish", "cat", 1, 0, ANIMALS),
    Case("one pair among texts", "I say (B) dog, no fish", "dog", 1, 1, ANIMALS),
    Case("denied text", "It is not a cat, it is a dog", "dog", 0, 1, ANIMALS),
    Case("letter within a word", "A category", "cat", 1, 0, ANIMALS),
    Case("empty, gold is C", "", "red bird", 1, 0, ANIMALS),
    Case("empty, gold is B", "", "dog", 0, 0, ANIMALS),
    Case("blanks, gold is C", " \n\t", "red bird", 1, 0, ANIMALS),
    Case("periods, gold is C", "...", "red bird", 1, 0, ANIMALS),
    Case("no option", "nothing", "dog", 0, 0, ANIMALS),
    Case("longest text", "It was dark red.", "dark red", 1, 1, COLOURS),
    Case("text within the longest", "It was dark red.", "red", 0, 0, COLOURS),
    Case("not this but that", "It is not red but blue", "blue", 0, 1, COLOURS),
    Case("decimal", "2.5", "2.5", 0, 1, DECIMALS),
    Case("decimal with letter", "B. 2.5", "2.5", 1, 1, DECIMALS),
    Case("decimal in a sentence", "It is 2.5.", "2.5", 0, 1, DECIMALS),
    Case("dollars", "$10", "$10", 0, 1, PRICES),
    Case("dollars with letter", "B) $10", "$10", 1, 1, PRICES),
    Case("dollars in a sentence", "It costs $15 now", "$5", 0, 0, PRICES),
    Case("caret", "x^3", "x^3", 0, 1, ("x^2", "x^3", "y", "z")),
    Case("12 against 1", "12", "12", 0, 1, COUNTS),
    Case("12 is not 1", "12", "1", 1, 0, COUNTS),
    Case("12 before 1", "12", "12", 1, 1, ("12", "1")),
    Case("thousands", "1200", "1,200", 1, 1, ("1,200", "1,300", "12", "13")),
    Case("sign", "-3", "-3", 1, 1, SIGNED),
    Case("sign matters", "-3", "3", 1, 0, SIGNED),
    Case("twins, letter and text", "B. red blue", "red blue", 0, 1, TWINS),
    Case("twins, text", "red blue", "red blue", 1, 1, TWINS),
    Case("twins, text in a sentence", "It is red-blue", "red-blue", 1, 1, TWINS),
    Case("twins, the other letter", "A", "red blue", 1, 0, TWINS),
    Case("one text twice", "C", "dog", 0, 1, ("dog", "cat", "dog", "fish")),
    Case("within a word", "unknown", "no", 1, 0, REPLIES),
    Case("across words", "on one", "no", 1, 0, REPLIES),
    Case("letters as texts", "A", "A", 1, 1, ("T", "F", "A", "C")),
    Case("second of thirty by letter", "B", "word01", 1, 0, THIRTY),
    Case("82nd by key", "b^", "word81", 1, 0, NINETY),
    Case("29th by text", "word28", "word28", 1, 1, THIRTY),
    Case("29th by key", "AC", "word28", 1, 0, THIRTY),
    Case("29th by key and text", "AC. word28", "word28", 0, 1, THIRTY),
    Case("first by the key of the 29th", "AC. word28", "word00", 1, 0, THIRTY),
]
NEEDLE = [
    Case("alone", "abc", "abc", 1, 1),
    Case("colon", "abc:", "abc", 0, 1),
    Case("in a sentence", "The key is abc.", "abc", 1, 1),
    Case("in capitals", "ABC", "abc", 1, 1),
    Case("in brackets", "(abc)", "abc", 1, 1),
    Case("in bold", "**abc**", "abc", 0, 1),
    Case("in quotes", "'abc'", "abc", 1, 1),
    Case("in quotes and more", "'abc' it is", "abc", 0, 1),
    Case("within a word", "abcdef", "abc", 0, 0),
    Case("absent", "I cannot tell", "abc", 0, 0),
    Case("empty", "", "abc", 0, 0),
    Case("two words", "the two words", "two words", 0, 1),
    Case("decimal", "3.5.", "3.5", 1, 1),
    Case("after 32 periods", ". " * 32 + "abc.", "abc", 0, 1),
    Case("after 31 periods", ". " * 31 + "abc.", "abc", 1, 1),
]
CONTAINS = [
    Case("in a sentence", "It is Paris.", "Paris", 1, 1),
    Case("alone", "no", "no", 1, 1),
    Case("unknown", "unknown", "no", 1, 0),
    Case("party", "a party", "art", 1, 0),
    Case("15", "15 people", "5", 1, 0),
    Case("thousands", "1200 km", "1,200", 1, 1),
    Case("line break", "a red\nbird", "red bird", 1, 1),
    Case("tab", "a red\tbird", "red bird", 1, 1),
    Case("hyphen", "Jean-Luc", "Jean Luc", 1, 1),
    Case("dash", "Jean - Luc", "Jean Luc", 0, 1),
    Case("apostrophe", "I don't know", "dont know", 0, 1),
    Case("sign", "-3 degrees", "3", 1, 0),
    Case("dollars", "5 dollars", "$5", 0, 0),
    Case("per cent", "5 people", "5%", 0, 0),
    Case("absent", "London", "Paris", 0, 0),
    Case("empty", "", "yes", 0, 0),
]
ROUGE_L = [
    Case("equal", "the cat sat", "the cat sat", library_f(1, 1), 1),
    Case("equal but for a period", "A cat.", "a cat", library_f(1, 1), 1),
    Case("empty", "", "a cat", 0, 0),
    Case("nothing shared", "one two", "a cat", 0, 0),
    Case("half", "the cat", "the cat sat down", library_f(1, 1 / 2), 2 / 3),
    Case("out of order", "sat cat the", "the cat sat", library_f(1 / 3, 1 / 3), 1 / 3),
    Case("two subsequences as long", "a b a", "a a b", library_f(1, 1), 4 / 6),
    Case("without end", "red ball " * 20, "red ball", library_f(1, 1), 4 / 42),
    Case("gold repeats", "the dog", "the dog saw the dog", library_f(1, 2 / 3), 4 / 7),
    Case("decimals", "3.5 metres", "3.9 metres", library_f(2 / 3, 2 / 3), 1 / 2),
    Case("colon", "left: two", "left two", library_f(1 / 2, 1 / 2), 1),
    Case("sentences", "b. " * 33 + "c. d e", "d c", library_f(2 / 4, 1), 2 / 38),
]
TABLE = [
    pytest.param(metric, case, id=f"{metric}: {case.name}")
    for metric, cases in zip(METRICS, (ACCURACY, ROUGE_L, NEEDLE, CONTAINS), strict=True)
    for case in cases
]
LONG = " ".join(f"w{number}" for number in range(1100))
FAULTY = [
    pytest.param("accuracy", "dog", "horse", 0, 0, official.NOT_A_CHOICE, id="accuracy: no such choice"),
    pytest.param("accuracy", "dog", "d.og", 1, 0, strict.NOT_A_CHOICE, id="accuracy: no such choice, strictly"),
    pytest.param("needle", "abc", "", 0, 0, strict.NO_GOLD, id="needle: no gold"),
    pytest.param("contains", "abc", "", 1, 0, strict.NO_GOLD, id="contains: no gold"),
    pytest.param("rouge_l", "abc", "...", 0, 0, official.NO_GOLD, id="rouge_l: no gold"),
    pytest.param(
        "rouge_l", "." * 40, "a cat", 0, 0, "the answer is nothing but periods", id="rouge_l: periods alone"
    ),
    pytest.param(
        "rouge_l", "a cat", "." * 40, 0, 0, "the right answer is nothing but periods", id="rouge_l: gold of periods"
    ),
    pytest.param(
        "rouge_l", LONG, LONG[:29], library_f(10 / 1100, 1), 20 / 1110, rouge.OVERFLOW, id="rouge_l: too long"
    ),
]
SPOKEN = st.lists(
    st.sampled_from(
        [*"ABCDabcd .,:;!?'\"()[]*$-^|\\\n", "answer is ", "not ", "or ", "dog", "cat", "1.5", "1,200", "é"]
    )
).map("".join)
ANY = st.text() | SPOKEN
SENTENCES = st.lists(st.sampled_from([*"abcdefgh", ".", ". ."]), min_size=1, max_size=12).map(" ".join)


@pytest.mark.parametrize(("metric", "case"), TABLE)
def test_scores_are_those_worked_out_by_hand(metric: str, case: Case) -> None:
    got = score(metric, case.prediction, case.gold, case.choices)

    assert got.official == pytest.approx(case.official, abs=1e-12)
    assert got.strict == pytest.approx(case.strict, abs=1e-12)
    assert got.fault is None


@pytest.mark.parametrize(("metric", "prediction", "gold", "wanted", "strictly", "fault"), FAULTY)
def test_what_cannot_be_scored_says_why(
    metric: str, prediction: str, gold: str, wanted: float, strictly: float, fault: str
) -> None:
    got = score(metric, prediction, gold, ANIMALS)

    assert got.official == pytest.approx(wanted, abs=1e-12)
    assert got.strict == pytest.approx(strictly, abs=1e-12)
    assert got.fault is not None
    assert fault in got.fault


@settings(max_examples=200, deadline=None)
@given(prediction=ANY, gold=ANY, choices=st.lists(ANY, max_size=30), place=st.integers(0, 29))
def test_no_text_stops_a_scorer(prediction: str, gold: str, choices: list[str], place: int) -> None:
    for metric in METRICS:
        for answer in (gold, (choices or [gold])[place % max(len(choices), 1)]):
            got = score(metric, prediction, answer, choices)
            assert 0 <= got.official <= 1
            assert 0 <= got.strict <= 1


@settings(max_examples=200, deadline=None)
@given(prediction=SENTENCES, gold=SENTENCES)
def test_loops_give_the_libraries_score_to_the_last_bit(prediction: str, gold: str) -> None:
    library, fault = rouge.summary_f(prediction, gold)

    if fault is None:
        assert rouge.summary_f_in_loops(prediction, gold) == library


@settings(max_examples=100, deadline=None)
@given(one=st.text("abc", max_size=7), other=st.text("abc", max_size=7))
def test_sequence_f_is_that_of_its_definition(one: str, other: str) -> None:
    def subsequences(text: str) -> set[str]:
        found = {""}
        for letter in text:
            found |= {start + letter for start in found}
        return found

    longest = max(map(len, subsequences(one) & subsequences(other)))
    assert rouge.sequence_f(one, other) == (2 * longest / (len(one) + len(other)) if one or other else 0)


@settings(max_examples=100, deadline=None)
@given(choices=st.lists(st.text("abcxyz123", min_size=2, max_size=8), min_size=2, max_size=8, unique=True))
def test_a_right_letter_or_text_is_always_right_strictly(choices: list[str]) -> None:
    for place, gold in enumerate(choices):
        letter = "ABCDEFGH"[place]
        for answer in (gold, f"{letter}.", f"({letter})", f"{letter}. {gold}", f"The answer is {letter}."):
            assert score("accuracy", answer, gold, choices).strict == 1


def test_a_repeated_letter_is_read_in_good_time() -> None:
    start = time.process_time()

    assert score("accuracy", "so " + "B " * 500, "dog", ANIMALS).strict == 1
    assert time.process_time() - start < 3


def test_unknown_metric() -> None:
    with pytest.raises(ConfigurationError, match="unknown metric 'bleu'"):
        score("bleu", "a", "a")
