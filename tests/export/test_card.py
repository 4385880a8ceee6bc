"""The model card: the Hub's fields, the results, and nothing of the machine that it was written on."""

import dataclasses
import json
import re

import pytest

from tests.export.runs import RESULT, text_run, tuned
from toast_jax.export import card
from toast_jax.model.backbones.llama import kinds as llama


def front_of(text):
    """The Hub's fields: a line each, with a value in JSON."""
    _, front, _ = text.split("---\n", 2)
    return {name: json.loads(value) for name, value in (line.split(": ", 1) for line in front.splitlines())}


def card_of(run, kind="timm", *files, **result):
    result = json.loads(json.dumps({**RESULT, "config": run.config.to_dict(), **result}))
    return card.card(run, result, kind, "mine", ["config.json", "model.safetensors", *files])


def test_card_states_what_the_run_was():
    run = tuned("lora")
    run.config.backbone.weights = "vit_ti16_in1k_deit"
    run.config.data.root = "/home/someone/pictures/birds"
    text = card_of(run)
    front = front_of(text)
    assert front["library_name"] == "timm" and front["pipeline_tag"] == "image-classification"
    assert front["license"] == "apache-2.0" and front["tags"] == ["toast_jax", "lora"]
    assert front["model-index"][0]["results"][0]["metrics"] == [{"type": "accuracy", "value": 0.875}]
    assert "A ViT tiny, tuned on birds with method `lora`" in text and "3 classes: heron, kite, owl." in text
    assert "| accuracy | 0.9 | 0.875 |\n" in text and "| examples | 6 | 1,200 |\n" in text
    assert "Seed 42, 1,200 steps, 99 tuned parameters." in text
    assert "- Licence of the backbone: Apache-2.0." in text and "hf upload OWNER/mine . ." in text
    assert 'timm.create_model("hf-hub:OWNER/mine", pretrained=True)' in text
    assert "/home" not in text
    config = json.loads(re.search(r"```json\n(.*?)```", text, re.S)[1])
    assert config["lora"] == {"alpha": 1.0, "rank": 4} and config["data"]["root"] == "birds"


def test_card_of_a_language_model_has_its_prompt(monkeypatch):
    monkeypatch.setitem(llama.SIZES, "small_card", llama.Size(8, 1, 1, 1, 8, 16, 64, kind=llama.QWEN2))
    run = text_run("lora", "small_card")
    text = card_of(run, "hf")
    assert "A Qwen2 small_card, tuned on alpaca_data.json" in text and "| tokens | 6 | 1,200 |\n" in text
    assert "### Instruction:\nQUESTION\n\n### Response:\n```" in text
    run = dataclasses.replace(run, config=run.config.copy_and_resolve_references())
    run.config.data.format = "messages"
    assert "apply_chat_template" in card_of(run, "hf", "chat_template.jinja")
    assert "apply_chat_template" not in card_of(run, "hf")
    run.config.backbone.size = "custom"
    assert "A Qwen2 of width 8 and depth 1, tuned on alpaca_data.json" in card_of(run, "hf")


def test_card_names_the_kind_of_vit():
    run = tuned("linear", "vit_ti8_dinov3", registers=2, rotary=100.0)
    assert "A DINOv3 ViT tiny, tuned on birds" in card_of(run)


@pytest.mark.parametrize(
    ("weights", "license", "sentence"),
    [
        (
            "weights/deit_tiny_patch16_224-a1311bcf.pth",
            "apache-2.0",
            "vit_ti16_in1k_deit, <https://dl.fbaipublicfiles.com/deit/",
        ),
        ("weights/vit_ti16_in1k_deit.pth", None, "not recorded; look it up where the weights come from"),
        ("vit_b16_in1k", "other", "see https://github.com/bfshi/TOAST"),
        ("hf:owner/name@main", None, "not recorded; look it up where the weights come from"),
        ("hf:owner/name@main", None, "[hf:owner/name@main](https://huggingface.co/owner/name)"),
    ],
)
def test_licence_is_that_of_the_named_weights(weights, license, sentence):
    run = tuned("lora")
    run.config.backbone.weights = weights
    text = card_of(run)
    front = front_of(text)
    assert front.get("license") == license and sentence in text
    assert front.get("base_model") == ("owner/name" if weights.startswith("hf:") else None)


def test_licence_of_a_repository_is_the_recorded_one():
    run = tuned("lora")
    run.config.backbone.weights = "hf:owner/name@main"
    text = card_of(run, weights={"backbone.weights": {"licence": "apache-2.0"}})
    assert front_of(text)["license"] == "apache-2.0" and "- Licence of the backbone: apache-2.0." in text


def test_seeds_of_a_sweep_are_counted_together(tmp_path):
    run = tuned("lora")
    for seed, accuracy in ((1, 0.8), (2, 0.9), (3, 0.1)):
        config = run.config.to_dict() | {"seed": seed, "epochs": 7 if seed == 3 else run.config.epochs}
        (tmp_path / f"seed_{seed}").mkdir()
        (tmp_path / f"seed_{seed}" / "result.json").write_text(
            json.dumps({"config": config, "seed": seed, "test": {"accuracy": accuracy}})
        )
    (tmp_path / "seed_4").mkdir()
    (tmp_path / "seed_4" / "result.json").write_text("{")
    run = type(run)(run.config, run.classes, 1, run.model, run.method, run.params, tmp_path / "seed_1")
    assert "over the seeds 1, 2: 85.0 +- 7.1 %" in card_of(run)


def test_run_without_a_test_split_has_no_accuracy():
    text = card_of(tuned("lora"), val={}, test={})
    assert "accuracy" not in text.partition("<details>")[0] and "model-index" not in text


def test_card_of_a_program_says_how_long_it_can_be_read():
    text = card_of(tuned("toast"), "stablehlo")
    assert "up to 6 months newer" in text and "3 weeks older" in text and "written by jax 0.10.2" in text
    assert "logits(pixels)  # uint8 [B, 16, 16, 3]" in text and front_of(text)["library_name"] == "jax"
