"""Documents made of results: `python -m drifting_policy.report html RUN ...` and `python -m drifting_policy.report tables`.

`html` writes RUN/report.html, a page about the run; further runs stand beside it. `tables` writes the tables of README.md from
results/*.json; `--check` only compares. A table stands between the lines `<!-- table FILE [columns ...] -->` and
`<!-- end -->`. Without columns FILE holds score rows, one for each objective and metric, and the table shows the metrics side
by side.
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drifting_policy.atomic import write_text
from drifting_policy.types import ConfigError, UserError
from drifting_policy.versions import ABSENT, SIMULATORS

TABLE = re.compile(r"(<!-- table (\S+)((?: \w+)*) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
Rows = Sequence[Mapping[str, Any]]
COSTS = ["evaluations per plan", "plan, ms (p50 / p99)", "training step, relative"]


def main(arguments: Sequence[str]) -> int:
    """Exit code 0 when the page is written, or the tables agree with the results (after writing, they do); 1 when they do not.

    A mistake gives 2.
    """
    parser = argparse.ArgumentParser(prog="python -m drifting_policy.report", description="Documents made of results.")
    kinds = parser.add_subparsers(dest="what", required=True)
    tables = kinds.add_parser("tables", help="the tables of a document")
    tables.add_argument("--check", action="store_true", help="change nothing; exit with 1 where the document disagrees")
    tables.add_argument("--document", type=Path, default=Path("README.md"))
    html = kinds.add_parser("html", help="RUN/report.html, a page that shows a run")
    html.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run, or the results of an evaluation")
    options = parser.parse_args(arguments)
    try:
        return _write_html(options.runs) if options.what == "html" else _write_tables(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _write_html(runs: Sequence[Path]) -> int:
    from drifting_policy.reporting.page import write_page  # loads PyTorch, which the tables do without

    print(write_page(runs))
    return 0


def _write_tables(options: argparse.Namespace) -> int:
    old = _read(options.document)
    new = with_tables(old, root=options.document.parent)
    if options.check and new != old:
        print(f"{options.document} disagrees with the results; write it anew: python -m drifting_policy.report tables")
        return 1
    if new != old:
        write_text(options.document, new)
    return 0


def with_tables(document: str, *, root: Path) -> str:
    """The document with every table made anew from the file it names, relative to `root`.

    Raises:
        ConfigError: where such a file is missing, damaged, or lacks a column.
    """

    def render(match: re.Match[str]) -> str:
        begin, name, columns, _, end = match.groups()
        rows = _load(root / name)
        try:
            table = plain_table(rows, columns.split()) if columns else score_table(rows)
        except KeyError as error:
            raise ConfigError(f"A row of {root / name} has no {error}.") from error
        return f"{begin}{table}\n{end}"

    return TABLE.sub(render, document)


def plain_table(rows: Rows, columns: Sequence[str]) -> str:
    """The columns of all rows as Markdown."""
    return _markdown([column.replace("_", " ") for column in columns], [[_cell(row[name]) for name in columns] for row in rows])


def score_table(rows: Rows) -> str:
    """One line per objective, one column per metric with its interval; below it how many of what were measured.

    Where the objectives cost differently, further columns tell what a plan and a step of the training cost.
    """
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    costs = len({row["nfe"] for row in rows}) > 1 and any(row.get("latency_ms") for row in rows)
    lines = []
    for name in dict.fromkeys(row["objective"] for row in rows):
        of_name = {row["metric"]: row for row in rows if row["objective"] == name}
        signed = "+" if " - " in name else ""
        cells = [
            f"{r['value']:{signed}.3f} [{r['low']:{signed}.3f}, {r['high']:{signed}.3f}]"
            for r in (of_name[metric] for metric in metrics)
        ]
        lines.append([name, *cells, *(_costs(of_name[metrics[0]]) if costs else [])])
    header = ["", *(metric.replace("_", " ") for metric in metrics), *(COSTS if costs else [])]
    return _markdown(header, lines) + f"\n\n{_note(rows)}"


def _costs(row: Mapping[str, Any]) -> list[str]:
    """The cells under `COSTS`; a difference between two objectives has none."""
    latency = row.get("latency_ms")
    if not latency:
        return ["", "", ""]
    return [str(row["nfe"]), f"{latency['p50']:.1f} / {latency['p99']:.1f}", f"{row['train_step_ratio']:.1f}"]


def _note(rows: Rows) -> str:
    """What every number of the table was measured with."""
    row, counts = rows[0], sorted({row["nfe"] for row in rows})
    evaluations = f"{' or '.join(map(str, counts))} network evaluation{'s' if counts != [1] else ''} per plan"
    known = {name: row["versions"].get(name, ABSENT) for name in ("torch", *SIMULATORS)}
    versions = ", ".join(f"{name} {version}" for name, version in known.items() if version != ABSENT)
    seeds = sorted({row["n_training_seeds"] for row in rows})
    runs = f"{' or '.join(map(str, seeds))} training seed{'s' if seeds != [1] else ''}"
    checkpoints = f"last {row['n_checkpoints']} checkpoints" if row["n_checkpoints"] > 1 else "last checkpoint"
    others = {r["objective"]: r["n_checkpoints"] for r in rows if r["n_checkpoints"] != row["n_checkpoints"]}
    if others:
        checkpoints += f" ({', '.join(f'{name}: {count}' for name, count in others.items())})"
    return (
        f"Task {row['task']}, {row['data']} demonstrations, head {row['head']}, {evaluations}; "
        f"{runs}, {checkpoints}, {row['n_episodes']} {row['split']} episodes; "
        f"{100 * row['confidence']:.0f} % intervals, {row['method']}; {versions}."
    )


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, ["---"] * len(header), *lines])


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({error.strerror}).") from error


def _load(file: Path) -> Rows:
    text = _read(file)
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{file} is no JSON ({error}).") from error
    rows = content.get("rows") if isinstance(content, dict) else content
    if not isinstance(rows, list) or not rows:
        raise ConfigError(f"{file} must hold a list of at least one row, or an object whose 'rows' is one.")
    return rows


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
