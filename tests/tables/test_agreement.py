"""Agreement of methods: made by hand logits in, numbers by hand out."""

import json

import numpy as np
import pytest

from configs import table as config_of
from tests.tables.test_paper_tables import sweep_of, write
from toast_jax.errors import InputError
from toast_jax.tables import agreement
from toast_jax.tasks import table as task
from toast_jax.workdir import run_folder

LABEL = np.array([0, 0, 1, 1])
ONE, ZERO, MAYBE_ONE, MAYBE_ZERO = [0.0, 9.0], [9.0, 0.0], [0.0, 0.1], [0.1, 0.0]  # logits


def keep(folder, logits, label=LABEL):
    folder.mkdir(parents=True, exist_ok=True)
    run_folder.write_predictions(folder, logits=np.array(logits, np.float32), label=label)


def sweep(folder):
    """Each method is wrong about one image, lora being sure about both."""
    for seed in (1, 2):
        keep(folder / f"lora/dtd/final/seed_{seed}", [ZERO, ONE, ONE, MAYBE_ONE])
        keep(folder / f"toast/dtd/final/seed_{seed}", [ZERO, MAYBE_ZERO, MAYBE_ZERO, ONE])
    keep(folder / "toast/svhn/final/seed_1", [ZERO, ZERO, ONE, ONE])
    return [(name, folder / name) for name in ("linear", "lora", "toast")]


def test_agreement_and_gain_are_means_over_tasks(tmp_path):
    """Lora and toast agree on 2 of 4 images, and each is right about 3; so is the average, which keeps lora's mistake."""
    assert agreement.rows(sweep(tmp_path)) == [
        ["lora, two seeds", "1", "100.0", "75.0", "+0.0"],
        ["lora + toast", "1", "50.0", "75.0", "+0.0"],
        ["toast, two seeds", "1", "100.0", "75.0", "+0.0"],
    ]


def test_an_average_can_be_better_than_both(tmp_path):
    keep(tmp_path / "lora/dtd/final/seed_1", [ZERO, MAYBE_ONE, ONE, ONE])
    keep(tmp_path / "toast/dtd/final/seed_1", [MAYBE_ONE, ZERO, ONE, ONE])
    ((name, tasks, same, both, gain),) = agreement.rows([(name, tmp_path / name) for name in ("lora", "toast")])
    assert (name, tasks, same, both, gain) == ("lora + toast", "1", "50.0", "100.0", "+25.0")


def test_seeds_and_tasks_that_one_of_both_lacks_are_left_out(tmp_path):
    keep(tmp_path / "lora/dtd/final/seed_1", [ZERO] * 4)
    keep(tmp_path / "toast/dtd/final/seed_2", [ZERO] * 4)
    keep(tmp_path / "toast/svhn/final/seed_1", [ZERO] * 4)
    assert agreement.rows([(name, tmp_path / name) for name in ("lora", "toast")]) == []


def test_other_images_are_refused(tmp_path):
    keep(tmp_path / "lora/dtd/final/seed_1", [ZERO] * 4)
    keep(tmp_path / "toast/dtd/final/seed_1", [ZERO] * 4, LABEL[::-1])
    with pytest.raises(InputError, match="lora/dtd/final/seed_1 and .*toast/dtd/final/seed_1 were tested on other images"):
        agreement.rows([(name, tmp_path / name) for name in ("lora", "toast")])


def test_damaged_logits_are_refused(tmp_path):
    for seed in (1, 2):
        keep(tmp_path / f"lora/dtd/final/seed_{seed}", [ZERO] * 4)
    path = tmp_path / "lora/dtd/final/seed_2/test_logits.npz"
    for content in (path.read_bytes()[:60], b""):
        path.write_bytes(content)
        with pytest.raises(InputError, match="seed_2/test_logits.npz cannot be read .*; remove it, or evaluate its run again"):
            agreement.rows([("lora", tmp_path / "lora")])


def test_the_table_has_it(tmp_path):
    folder = sweep_of(tmp_path / "sweep", "vtab")
    write(folder, "toast", "dtd", [0.7])
    config = config_of.get_config(f"from={folder}")
    task.run(config, str(tmp_path / "before"))
    assert "Agreement" not in (tmp_path / "before/table.md").read_text()
    sweep(folder)
    (folder / "sweep.json").write_text(json.dumps({"table": "vtab", "backbone": "vit_b16_in1k", "recipe": "fixed"}))
    for seed in (1, 2):
        for method in ("lora", "toast"):
            (folder / f"{method}/dtd/final/seed_{seed}/result.json").write_bytes(
                (folder / "toast/dtd/final/seed_0/result.json").read_bytes()
            )
    (folder / "toast/svhn/final/seed_1/test_logits.npz").unlink()
    task.run(config, str(tmp_path / "after"))
    for name in ("table.md", "table.html", "table.tex"):
        text = (tmp_path / "after" / name).read_text()
        assert "lora (fixed recipe) + toast (fixed recipe)" in text and "two seeds of one method are a control" in text
