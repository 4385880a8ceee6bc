"""Tales: always the same, with one right answer, and none of a split's answers in another."""

import json
import re

import pytest

from toast_jax.data.text import synthetic_tales

SAID = r"(\w+) (\w+) (an?) (\w+) (\w+)\."


@pytest.mark.parametrize("split", synthetic_tales.SPLITS)
def test_a_question_has_one_answer_which_stands_in_the_tale(split):
    places = set()
    for i in range(100):
        told = synthetic_tales.tale(split, i)
        assert told == synthetic_tales.tale(split, i) != synthetic_tales.tale(split, i + 1)
        said = re.findall(SAID, told.text)
        names, verbs, articles, kinds, things = zip(*said, strict=True)
        assert all(len(set(some)) == 3 for some in (names, verbs, kinds, things))
        assert all((article == "an") == (kind[0] in "aeiou") for article, kind in zip(articles, kinds, strict=True))
        asked, present = re.fullmatch(r"What did (\w+) (\w+)\?", told.question).groups()
        assert synthetic_tales.VERBS[verbs[names.index(asked)]] == present
        assert re.fullmatch(SAID, told.answer).groups() == said[names.index(asked)]
        places.add(names.index(asked))
    assert places == {0, 1, 2}  # where the answer stands says nothing


def pairs(split):
    return {(name, thing) for i in range(500) for name, _, _, _, thing in re.findall(SAID, synthetic_tales.tale(split, i).text)}


def test_splits_share_words_and_no_pair_of_child_and_thing():
    train, val, test = (pairs(split) for split in synthetic_tales.SPLITS)
    assert not train & val and not train & test and not val & test
    for position in (0, 1):
        assert {pair[position] for pair in train} == {pair[position] for pair in test} == {pair[position] for pair in val}


def test_files(tmp_path):
    synthetic_tales.write(tmp_path, {"text": 3, "train": 4, "val": 1, "test": 2})
    read = {path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in tmp_path.iterdir()}
    assert {name: len(lines) for name, lines in read.items()} == {"text": 3, "train": 4, "val": 1, "test": 2, "questions": 2}
    told = synthetic_tales.tale("test", 1)
    assert read["test"][1] == {"prompt": f"{told.text} {told.question}", "response": f" {told.answer}"}
    assert read["questions"][1] == {"question": f"{told.text} {told.question}"}
    assert read["text"][0] == {"text": synthetic_tales.tale("train", 4).text}  # none that is asked about later
