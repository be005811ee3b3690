"""Whatever fails on the way, what stood there before still stands there, and nothing else does."""

import json
from pathlib import Path

import pytest

from drifting_policy.atomic import replace_folder, write_json, write_text


def test_text_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "notes.txt"
    write_text(file, "old")

    def refuse(self: Path, target: Path) -> Path:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", refuse)
        with pytest.raises(OSError, match="No space"):
            write_text(file, "new")
    assert [(path, path.read_text()) for path in tmp_path.iterdir()] == [(file, "old")]
    write_text(file, "new")
    assert [(path, path.read_text()) for path in tmp_path.iterdir()] == [(file, "new")]


def test_json_that_cannot_be_written_is_not_begun(tmp_path: Path) -> None:
    file = tmp_path / "values.json"
    write_json(file, {"a": 1})
    with pytest.raises(TypeError):
        write_json(file, {"a": object()})
    assert json.loads(file.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("existing", [True, False])
def test_a_folder_is_replaced_as_a_whole(existing: bool, tmp_path: Path) -> None:
    draft, target = tmp_path / ".draft", tmp_path / "target"
    if existing:
        target.mkdir()
        (target / "old").touch()
    with pytest.raises(FileNotFoundError):
        replace_folder(draft, target)
    assert [path.name for path in tmp_path.rglob("*")] == (["target", "old"] if existing else [])
    draft.mkdir()
    (draft / "new").touch()
    replace_folder(draft, target)
    assert [path.name for path in tmp_path.rglob("*")] == ["target", "new"]
