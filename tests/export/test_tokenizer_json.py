"""The tokenizer of llama2.c as a file of the tokenizers library, and what the model card of an export says of it."""

import dataclasses
import json
import re

import numpy as np
import pytest

from tests.data.text.test_tokenizer import TEXT, llama2c_file, llama2c_model, sentencepiece_model
from tests.export.runs import RESULT, text_run
from toast_jax.data.text import tokenizer
from toast_jax.export import card, folder, plain

PIECES = [" ", "o", "n", "ce", "c", "e", "a", "t", "w", "l", " o", "on", " once", "ow", " a", "aa", "aaa", "wl", "ï", "\n"]


def exported(path, tokenizer_file):
    """Write a run whose tokenizer is a file as a folder for transformers."""
    run = text_run("lora", vocabulary=tokenizer.load(str(tokenizer_file)).vocabulary if tokenizer_file.is_file() else 0)
    run = dataclasses.replace(run, config=run.config.copy_and_resolve_references())
    run.config.data.tokenizer = str(tokenizer_file)
    files = plain.files(run, "hf")
    files["README.md"] = card.card(run, {**RESULT, "config": run.config.to_dict()}, "hf", "mine", sorted(files))
    folder.write(path, files)
    return path


@pytest.fixture
def file(tmp_path):
    scored = [(-float(number % 7) - len(piece), piece.encode()) for number, piece in enumerate(PIECES)]
    return llama2c_file(tmp_path / "tok.bin", scored)


def test_it_splits_text_as_llama2c_does(file, tmp_path):
    pytest.importorskip("tokenizers")
    path = exported(tmp_path / "run", file)
    expected, words = tokenizer.load(str(file)), tokenizer.load(str(path))
    rng = np.random.default_rng(0)
    texts = [TEXT, " once", "a", "", "owl\n\naa", *("".join(rng.choice(list("oncea twl"), 30)) for _ in range(50))]
    for text in texts:
        ids = expected.encode(text).ids
        assert words.encode(text).ids == ids and words.decode(ids) == text
    assert (words.vocabulary, words.begin, words.end) == (expected.vocabulary, expected.begin, expected.end)
    assert words._model.encode("owl").ids == [1, *expected.encode("owl").ids]  # as a document begins
    config = json.loads((path / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)


def test_a_card_shows_the_tokenizer_only_if_it_is_there(file, tmp_path):
    text = (exported(tmp_path / "run", file) / "README.md").read_text()
    assert 'AutoTokenizer.from_pretrained("OWNER/mine")' in text and "- `tokenizer.json`: a file of the tokenizer" in text
    text = (exported(tmp_path / "other", tmp_path / "nowhere") / "README.md").read_text()
    assert "AutoTokenizer" not in text and 'AutoModelForCausalLM.from_pretrained("OWNER/mine")' in text
    assert "The tokenizer is not in this folder; take the one that came with the weights of the backbone." in text


def test_a_model_of_sentencepiece_begins_a_text_with_its_token(tmp_path):
    path = exported(tmp_path / "run", sentencepiece_model(tmp_path / "tokenizer.model"))
    config = json.loads((path / "tokenizer_config.json").read_text())
    assert config == {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert (exported(tmp_path / "other", tmp_path / "tokenizer.model") / "tokenizer_config.json").read_text() == "{}"


@pytest.mark.slow
@pytest.mark.parametrize("make", [llama2c_model, sentencepiece_model])
def test_the_code_of_a_card_runs(make, tmp_path):
    for library in ("transformers", "torch"):
        pytest.importorskip(library)
    file = make(tmp_path / ("tok.bin" if make is llama2c_model else "tokenizer.model"))
    path = exported(tmp_path / "run", file)
    code = re.search(r"```python\n(.*?)```", (path / "README.md").read_text(), re.S)[1]
    names = {}
    exec(code.replace("OWNER/mine", str(path)), names)
    ids = names["tokenizer"]("once an owl", return_tensors="pt")["input_ids"]
    assert ids.tolist() == [[1, *tokenizer.load(str(file)).encode("once an owl").ids]]
    assert names["tokenizer"].decode(ids[0], skip_special_tokens=True) == "once an owl"
    assert names["network"](ids).logits.shape[:2] == ids.shape
