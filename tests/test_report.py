"""The tables of a document say what the result files say, and a document that says otherwise is found out."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from drifting_policy.report import main, plain_table, with_tables
from drifting_policy.types import ConfigError

ROOT = Path(__file__).resolve().parents[1]


def row(objective: str, metric: str, value: float) -> dict[str, Any]:
    return {
        "task": "push_t",
        "data": "human",
        "objective": objective,
        "head": "mlp",
        "nfe": 1,
        "metric": metric,
        "value": value,
        "low": value - 0.1,
        "high": value + 0.1,
        "confidence": 0.95,
        "method": "bootstrap",
        "split": "test",
        "n_episodes": 50,
        "n_checkpoints": 5,
        "n_training_seeds": 3,
        "versions": {"torch": "2.13.0", "gym-pusht": "0.1.8", "pymunk": "6.11.1"},
    }


def written(folder: Path, rows: list[dict[str, Any]], *, columns: str = "") -> Path:
    """A document with one empty table over `rows`."""
    (folder / "rows.json").write_text(json.dumps(rows))
    document = folder / "README.md"
    document.write_text(f"before\n<!-- table rows.json{columns} -->\n<!-- end -->\nafter\n")
    return document


def test_scores_stand_side_by_side(tmp_path: Path) -> None:
    rows = [row(name, metric, 0.5) for name in ("drift", "drift - regression") for metric in ("max_score", "success")]
    document = written(tmp_path, rows)
    assert main(["tables", "--document", str(document)]) == 0
    lines = document.read_text().splitlines()
    assert lines[2:6] == [
        "|  | max score | success |",
        "| --- | --- | --- |",
        "| drift | 0.500 [0.400, 0.600] | 0.500 [0.400, 0.600] |",
        "| drift - regression | +0.500 [+0.400, +0.600] | +0.500 [+0.400, +0.600] |",
    ]
    assert all(
        word in lines[7] for word in ("3 training seeds", "last 5 checkpoints", "50 test episodes", "torch 2.13.0", "95 %")
    )
    assert "head mlp, 1 network evaluation per plan;" in lines[7]


def test_costs_are_told_where_they_differ(tmp_path: Path) -> None:
    costs = {"drift": (1, 2.04, 3.5), "flow": (10, 20.06, 3.46)}
    rows: list[dict[str, Any]] = []
    for name, (nfe, p50, ratio) in costs.items():
        about = {"nfe": nfe, "latency_ms": {"p50": p50, "p99": 2 * p50}, "train_step_ratio": ratio}
        rows += [row(name, metric, 0.5) | about for metric in ("max_score", "success")]
    rows += [row("drift - flow", metric, 0.1) | {"latency_ms": None} for metric in ("max_score", "success")]
    document = written(tmp_path, rows)
    assert main(["tables", "--document", str(document)]) == 0
    lines = document.read_text().splitlines()
    assert lines[2].endswith("| success | evaluations per plan | plan, ms (p50 / p99) | training step, relative |")
    assert lines[4].endswith("| 1 | 2.0 / 4.1 | 3.5 |")
    assert lines[5].endswith("| 10 | 20.1 / 40.1 | 3.5 |")
    assert lines[6].endswith("|  |  |  |")
    assert (lines[0], lines[-1]) == ("before", "after")


def test_a_document_that_disagrees_is_found_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = written(tmp_path, [row("drift", "success", 0.5)])
    assert main(["tables", "--check", "--document", str(document)]) == 1
    assert "disagrees" in capsys.readouterr().out
    assert main(["tables", "--document", str(document)]) == 0
    before = document.read_text()
    assert main(["tables", "--check", "--document", str(document)]) == 0
    document.write_text(before.replace("0.500", "0.600"))
    assert main(["tables", "--check", "--document", str(document)]) == 1


def test_the_rows_may_stand_in_a_record(tmp_path: Path) -> None:
    document = written(tmp_path, [], columns=" head")
    (tmp_path / "rows.json").write_text(json.dumps({"met": True, "rows": [{"head": "mlp"}]}))
    assert "| head |\n| --- |\n| mlp |\n" in with_tables(document.read_text(), root=tmp_path)


def test_named_columns_make_a_plain_table() -> None:
    table = plain_table([{"head": "mlp", "step_ms": 1.23456, "n": 3}], ["head", "step_ms"])
    assert table.splitlines() == ["| head | step ms |", "| --- | --- |", "| mlp | 1.23 |"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, r"^\S*rows.json cannot be read \(No such file or directory\).$"),
        ("{", "rows.json is no JSON"),
        ("[]", "at least one row"),
        ('{"rows": {}}', "at least one row"),
        ('[{"a": 1}]', "has no 'b'"),
    ],
)
def test_results_that_cannot_serve_are_named(tmp_path: Path, content: str | None, words: str) -> None:
    document = written(tmp_path, [], columns=" b")
    before = document.read_text()
    (tmp_path / "rows.json").unlink() if content is None else (tmp_path / "rows.json").write_text(content)
    with pytest.raises(ConfigError, match=words):
        with_tables(before, root=tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "drifting_policy.report", "tables", "--document", str(document)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, document.read_text()) == (2, before)
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


PAGES = ("training", "toys", "evaluation", "tasks", "latency")


@pytest.mark.parametrize("name", ["README.md", *(f"docs/{page}.md" for page in PAGES)])
def test_the_documents_of_this_project_agree_with_its_results(name: str) -> None:
    assert "<!-- table " in (ROOT / name).read_text()
    assert main(["tables", "--check", "--document", str(ROOT / name)]) == 0


def test_fewer_checkpoints_are_named(tmp_path: Path) -> None:
    rows = [row("drift", "success", 0.5), row("diffusion", "success", 0.5) | {"n_checkpoints": 2}]
    document = written(tmp_path, rows)
    assert main(["tables", "--document", str(document)]) == 0
    assert "last 5 checkpoints (diffusion: 2), 50 test episodes" in document.read_text()


def test_baselines_may_need_more_evaluations(tmp_path: Path) -> None:
    rows = [row("drift", "success", 0.5), row("flow", "success", 0.5) | {"nfe": 10}]
    document = written(tmp_path, rows)
    assert main(["tables", "--document", str(document)]) == 0
    assert "head mlp, 1 or 10 network evaluations per plan;" in document.read_text()


def test_rows_may_have_other_numbers_of_seeds(tmp_path: Path) -> None:
    rows = [row("drift", "success", 0.5), row("flow", "success", 0.5) | {"n_training_seeds": 1}]
    document = written(tmp_path, [each | {"n_checkpoints": 1} for each in rows])
    assert main(["tables", "--document", str(document)]) == 0
    assert "1 or 3 training seeds, last checkpoint, 50 test episodes;" in document.read_text()
