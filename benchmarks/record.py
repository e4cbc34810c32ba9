"""Write RECORD.md: what all benchmarks measured, by kind of machine, with command, commit, rival and spread.

    FILTERSCOPE_REAL=<folder> python benchmarks/record.py [--only NAME,…] [--whole] [--check]
    python benchmarks/record.py --add FILE …

Runs the commands of `COMMANDS` (`--whole`: without `--quick`, hours) one after the other, adds their figures to
`record.json`, and writes `RECORD.md` from it. Figures of other machines, other commands and earlier commits are kept.
`--add` takes files that benchmarks wrote with `--json` instead. `--check` repeats recorded quick commands, and fails
where a ratio to a rival is below 85 % of the recorded one.
"""

import argparse
import itertools
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RECORD, PAGE = HERE / "record.json", HERE / "RECORD.md"
COMMANDS = {
    "demo": "demo.py",
    "startup": "startup.py --processor",
    "threads": "startup.py --threads",
    "input": "input_pipeline.py",
    "pictures": "picture_logging.py",
    "training": "training.py --processor",
    "accuracy": "accuracy.py",
    "synthesis": "synthesis_speed.py",
    "rivals": "synthesis_rivals.py",
    "cost": "synthesis_training.py",
    "truth": "synthesis_truth.py",
    "explains": "explains.py",
    "tuning": "tuning.py",
    "gallery": "gallery.py",
    "vgg16": "gallery.py --vgg16",
    "health": "health.py",
    "predicts": "health_predicts.py",
    "prunes": "health_prunes.py",
    "scaling": "scaling.py",
    "networks": "look_networks.py",
    "faults": "faults.py",
    "gpu": "gpu.py",
}
ALWAYS_WHOLE = ("demo", "vgg16", "tuning", "networks", "gpu")  # minutes, and `--quick` would be another thing
KEPT = 20  # earlier values of a figure
LEAST = 0.85  # share of a recorded ratio that `--check` demands

Record = dict[str, dict[str, Any]]
"""Of each kind of machine: `machine`, and `commands` with `title` and `figures`, the values of each by commit."""


def main() -> int:
    """Measure, add or check."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default=",".join(COMMANDS), metavar="NAMES", help="of " + ",".join(COMMANDS))
    parser.add_argument("--whole", action="store_true", help="without --quick")
    parser.add_argument("--check", action="store_true", help="compare with the record instead of adding to it")
    parser.add_argument("--add", type=Path, nargs="+", default=[], metavar="FILE", help="written by --json")
    options = parser.parse_args()
    record: Record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    names = options.only.split(",")
    if unknown := [name for name in names if name not in COMMANDS]:
        parser.error(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(COMMANDS)}")
    commands = [] if options.add else [command_of(name, whole=options.whole) for name in names]
    if options.check:
        recorded = {command for machine in record.values() for command in machine["commands"]}
        commands = [command for command in commands if command in recorded]
    failed = []
    measured = [json.loads(file.read_text()) for file in options.add]
    for command in commands:
        print(f"\n{command}", flush=True)
        found = run(command)
        if found is None:
            failed.append(f"{command}: ended without figures")
        elif options.check:
            failed += losses(record, found)
        else:
            measured.append(found)
            save(record, [found])
    if options.add:
        save(record, measured)
    print("\n".join(["", *failed] if failed else ["", "no ratio fell" if options.check else f"written: {PAGE}"]))
    return 1 if failed else 0


def command_of(name: str, *, whole: bool) -> str:
    """Return the command of a benchmark."""
    quick = not whole and name not in ALWAYS_WHOLE
    return f"python benchmarks/{COMMANDS[name]}{' --quick' if quick else ''}"


def run(command: str) -> dict[str, Any] | None:
    """Run a benchmark and return what it wrote, or None if it wrote nothing; its exit code says if targets are met."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "figures.json"
        words = [sys.executable, *shlex.split(command)[1:], "--json", str(file)]
        subprocess.run(words, cwd=HERE.parent, check=False)
        return json.loads(file.read_text()) if file.exists() else None


def save(record: Record, measured: Sequence[dict[str, Any]]) -> None:
    """Add what benchmarks measured to the record, and write both files."""
    for found in measured:
        machine = record.setdefault(found["machine"]["kind"], {"machine": {}, "commands": {}})
        machine["machine"] = found["machine"]
        entry = machine["commands"].setdefault(found["command"], {"title": found["title"], "figures": {}})
        about = {"commit": found["commit"], "date": found["date"]}
        for row in found["rows"]:
            values = entry["figures"].setdefault(row["what"], [])
            values[:] = [value for value in values if value["commit"] != found["commit"]][-KEPT:]
            values.append({**about, **{name: row.get(name) for name in ("value", "sign", "target", "holds")}})
            values[-1] |= {name: row[name] for name in ("rival", "spread") if row.get(name)}
    RECORD.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    PAGE.write_text(page(record))


def losses(record: Record, found: dict[str, Any]) -> list[str]:
    """Return a line for each ratio that is below `LEAST` of the one recorded on this kind of machine."""
    entry = record.get(found["machine"]["kind"], {"commands": {}})["commands"].get(found["command"], {"figures": {}})
    lines = []
    for row in found["rows"]:
        values = entry["figures"].get(row["what"], [])
        if row.get("rival") and values and row["value"] < LEAST * values[-1]["value"]:
            before = values[-1]
            lines.append(f"{row['what']}: {row['value']:.3g}; {before['value']:.3g} at {before['commit'][:7]}")
    return lines


def page(record: Record) -> str:
    """Return the page."""
    lines = [
        "# Record of measurements",
        "",
        "Written by `python benchmarks/record.py`; every figure can be repeated with the command above it. A figure",
        "with a rival says how many times as fast filterscope is: the median of pairs that were timed alternately. The",
        "spread is the least and the most of these; it is wide where other work ran on the machine. A commit with +",
        "had uncommitted changes.",
    ]
    for kind, machine in record.items():
        about = machine["machine"]
        gpu = f", {about['gpu']}" if about["gpu"] else ""
        lines += ["", f"## {kind}", ""]
        lines += [f"{about['processor']} ({' '.join(about['flags'])}), {about['cores']} cores{gpu};"]
        lines += [f"Python {about['python']}, torch {about['torch']}."]
        for command, entry in machine["commands"].items():
            lines += ["", f"### {entry['title']}", "", f"`{command}`", ""]
            lines += ["| figure | value | spread | rival | target | commit |", "|---|---|---|---|---|---|"]
            lines += [_row(what, values[-1]) for what, values in entry["figures"].items()]
        changes = [line for entry in machine["commands"].values() for line in _changes(entry["figures"])]
        if changes:
            lines += ["", "### Gains and losses", "", "| figure | before | after | |", "|---|---|---|---|", *changes]
    return "\n".join(lines) + "\n"


def _row(what: str, value: dict[str, Any]) -> str:
    low, high = value.get("spread") or (None, None)
    spread = "" if low is None or low == high else f"{low:.3g} to {high:.3g}"
    missed = " (missed)" if value["holds"] is False else ""
    target = "" if value["target"] is None else f"{value['sign']} {value['target']:g}{missed}"
    cells = (what, f"{value['value']:.4g}", spread, value.get("rival", ""), target, _commit(value))
    return f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |"


def _changes(figures: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Return a row for each change by more than 5 % between two commits, newest first.

    Only figures that have a rival or a target are compared: the others say where these come from.
    """
    rows = []
    for what, values in figures.items():
        for pair in reversed(list(itertools.pairwise(values))):
            before, after = (value["value"] for value in pair)
            compared = pair[1].get("rival") or pair[1]["target"] is not None
            if compared and before and abs(after / before - 1) > 0.05:
                then, now = map(_commit, pair)
                better = (after > before) == (pair[1]["sign"] != "≤")
                word = "gain" if better else "loss"
                rows.append(f"| {what} | {before:.3g} ({then}) | {after:.3g} ({now}) | {word} |")
    return rows


def _commit(value: dict[str, Any]) -> str:
    commit: str = value["commit"]
    return commit[:7] + ("+" if commit.endswith("+") else "")


if __name__ == "__main__":
    raise SystemExit(main())
