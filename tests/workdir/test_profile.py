"""Which steps of a loop are traced, and what happens if the loop ends early or is traced by something else."""

import jax
import jax.numpy as jnp
import pytest

from toast_jax.errors import InputError
from toast_jax.workdir import profile


def loop(folder, steps, dispatches=6):
    with profile.traced(folder, steps) as dispatched:
        for number in range(dispatches):
            dispatched({"loss": jnp.float32(number)})


@pytest.mark.parametrize(("steps", "traced"), [(2, 2), (3, 3), (100, 3)])
def test_steps_are_traced_from_the_fourth_on_or_until_the_loop_ends(steps, traced, tmp_path, caplog):
    caplog.set_level("INFO", "toast_jax")
    loop(tmp_path, steps)
    assert f"Traced {traced} steps; open {tmp_path}/profile" in caplog.text
    assert len(list(tmp_path.rglob("*.xplane.pb"))) == 1


def test_nothing_is_traced_where_no_step_is_asked_for_or_left(tmp_path):
    loop(tmp_path, 0)
    loop(tmp_path, 2, dispatches=2)
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_is_being_traced_already_is_an_input_error(tmp_path):
    with (
        jax.profiler.trace(tmp_path / "other"),
        pytest.raises(InputError, match=r"config.profile cannot be used here \(.*Only one profile.*\); set it to 0"),
    ):
        loop(tmp_path, 2)
