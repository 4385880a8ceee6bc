"""An exported folder appears whole or not at all."""

import pytest

from toast_jax.errors import InputError
from toast_jax.export import folder


def test_folder_appears_whole(tmp_path):
    (tmp_path / "x.partial").mkdir()  # of a process that was killed
    (tmp_path / "x.partial" / "old").touch()
    folder.write(tmp_path / "x", {"a.json": "{}", "b": lambda path: path.write_bytes(b"1")})
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == ["a.json", "b"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), InputError("refused.")])
def test_folder_that_fails_leaves_nothing(tmp_path, error):
    def fails(path):
        path.write_bytes(b"half")
        raise error

    with pytest.raises(InputError if isinstance(error, OSError) else type(error)) as raised:
        folder.write(tmp_path / "x", {"a": "1", "b": fails})
    assert not list(tmp_path.iterdir())
    if isinstance(error, OSError):
        assert "x cannot be written" in str(raised.value) and "No space left on device" in str(raised.value)
