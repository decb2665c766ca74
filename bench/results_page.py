"""bench/RESULTS.md, its plots and kvmeta/cli/measured.json, made from the files in bench/results.

    compare.json                              who answers how much, at what price
    scale.json                                what growth costs
    engine.json service.json cluster.json     every target and what was measured
    placement.json                            how evenly entries lie, and how much moves

`python -m bench.results_page` makes them; a test checks that they hold what this makes. Plots need
matplotlib; without it the rest is made alone.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.markdown import prose, table
from bench.sections import RESULTS, Section, answers, median, read, series, short, sizes, systems
from bench.table import number

ROOT = Path(__file__).resolve().parents[1]
PLANNED = ROOT / "kvmeta" / "cli" / "measured.json"
PAGE = ROOT / "bench" / "RESULTS.md"

_CASES = (
    "batches of 256",
    "batches of 4,096",
    "batches of 16,384",
    "half of them absent",
    "all absent",
    "Zipf",
)
_KINDS = ("sequential IDs", "paths IDs")
_TARGETS = (("engine", "The engine"), ("service", "The service"))


def page(sections: dict[str, Section]) -> str:
    """Return the page."""
    lines = [
        "# Results",
        "",
        *prose(
            "`make bench-report` makes this page from the files in [results](results), which hold every"
            " round. A figure is the median of interleaved rounds. Brackets hold the least and the most,"
            " where there is room. Servers and clients share the cores. The head of each benchmark says how"
            " it measures: [compare.py](compare.py), [scale.py](scale.py), [engine.py](engine.py),"
            " [service.py](service.py), [cluster.py](cluster.py), [placement.py](placement.py)."
        ),
        "",
    ]
    if "compare" in sections:
        lines += _compare(sections["compare"])
    if "scale" in sections:
        lines += _scale(sections["scale"])
    for name, what in _TARGETS:
        if name in sections:
            lines += [f"## {what}", "", *_machine(sections[name], name), *_targets(sections[name]["answers"])]
    if "cluster" in sections:
        lines += _cluster(sections["cluster"])
    if "placement" in sections:
        lines += _placement(sections["placement"])
    return "\n".join(lines).rstrip() + "\n"


def measured(sections: dict[str, Section]) -> dict[str, Any] | None:
    """Return what `kvmeta plan` counts with, None while a benchmark has not been run in full.

    From the largest store that was asked warm: beyond it nothing says what memory would do.
    """
    if not {"compare", "scale", "engine"} <= set(sections):
        return None
    told = [(size, answer) for size, answer in sizes(sections["scale"]) if series(answer, "warm, over gRPC")]
    rows, largest = max(told, key=lambda each: each[0])
    kvmeta = next(each for each in systems(sections["compare"]) if each["key"] == "system-kvmeta")
    opened = answers(sections["engine"])["open"]
    replay = next(each for each in opened["beside"] if "WAL" in each["name"])
    machine = sections["scale"]["machine"]

    def figure(answer: Section, name: str) -> float:
        return float((series(answer, name) or {})["median"])

    return {
        "machine": f"{machine['cpu']}, {machine['cores']} cores, client and server sharing them",
        "date": sections["scale"]["date"][:10],
        "entries": rows,
        "disk_bytes_per_entry": figure(largest, "disk"),
        "memory_bytes_per_entry": figure(largest, "memory"),
        "process_bytes": figure(kvmeta, "memory, empty") * 1e6,
        "warm_lookups_per_s": 1e9 / figure(largest, "warm, over gRPC"),
        "cold_lookups_per_s": figure(largest, "cold, batches of 16,384") * 1e3,
        "puts_per_s": figure(largest, "puts, merges waited for") * 1e6,
        "load_per_s": figure(largest, "bulk load and compaction") * 1e6,
        "start_s": figure(kvmeta, "open"),
        "open_s_per_entry": figure(largest, "open, cold") / rows,
        "replay_s": replay["median"],
    }


def _compare(section: Section) -> list[str]:
    told = systems(section)
    readers = [answer for answer in told if series(answer, "batches of 4,096")]
    lines = ["## Side by side", "", *_machine(section, "compare")]
    lines += ["Lookups in M IDs/s, each system asked in its quickest way:", ""]
    lines += table(
        ("", "entries, M", *_CASES),
        ((short(each), median(each, "rows"), *(median(each, case) for case in _CASES)) for each in readers),
    )
    lines += ["![Lookups a second](results/lookups.svg)", ""]
    lines += ["The same for other kinds of IDs, in smaller stores, batches of 4,096:", ""]
    lines += table(
        ("", *_KINDS), ((short(each), *(median(each, kind) for kind in _KINDS)) for each in readers)
    )
    lines += prose(
        "How long a call takes in ms, one at a time, in batches of 4,096 (SeaweedFS: 256). Beside it, how"
        " fast the system takes puts, what an entry costs, and how long it takes to open:"
    )
    lines += [""]
    lines += table(
        (
            "",
            "lookup p50",
            "p99",
            "put p50",
            "p99",
            "puts, M/s",
            "durable",
            "memory, B/entry",
            "disk, B/entry",
            "open, s",
        ),
        (_kept(each) for each in told),
    )
    lines += ["![Memory and disk](results/footprint.svg)", ""]
    lines += ["How many times as fast kvmeta is. A row says in which way each was quickest:", ""]
    lines += _targets([each for each in section["answers"] if each not in told])
    lines += [
        "Versions and notes:",
        "",
        *(line for each in told for line in prose(f"- {each['question']}", "  ")),
        "",
    ]
    return lines


def _kept(answer: Section) -> tuple[str, ...]:
    calls = [
        next(
            (
                number(s["median"])
                for s in answer["beside"]
                if s["name"].startswith(what) and s["name"].endswith(p)
            ),
            "",
        )
        for what in ("lookup of", "put of")
        for p in ("p50", "p99")
    ]
    durable, unsafe = median(answer, "durable puts"), median(answer, "puts, not durable")
    safe = "yes" if durable else "no" if unsafe else ""
    rest = (median(answer, name) for name in ("memory", "disk", "open"))
    return (short(answer), *calls, durable or unsafe, safe, *rest)


def _scale(section: Section) -> list[str]:
    told = sizes(section)
    rows = (
        ("warm lookup in process, ns/ID", "warm, in process", None),
        ("warm lookup over gRPC, ns/ID", "warm, over gRPC", None),
        ("cold lookup, batches of 4,096, k IDs/s", "cold, batches of 4,096", None),
        ("device reads a cold ID", "cold, batches of 4,096: device reads", "/ID"),
        ("device reads, k/s", "cold, batches of 4,096: device reads", "k/s"),
        ("fio at the same depth, k/s", "fio at that depth, cold, batches of 4,096", None),
        ("requests in flight", "cold, batches of 4,096: in flight", None),
        ("cold lookup, batches of 16,384, k IDs/s", "cold, batches of 16,384", None),
        ("mixed lookup, k IDs/s", "mixed", None),
        ("device reads a mixed ID", "mixed: device reads", None),
        ("memory, B/entry", "memory", None),
        ("disk, B/entry", "disk", None),
        ("open cold, s", "open, cold", None),
        ("open warm, s", "open, warm", None),
        ("load and compaction, M entries/s", "bulk load and compaction", None),
        ("entries put, M", "entries put", None),
        ("puts, M entries/s", "puts", None),
        ("puts, merges waited for, M entries/s", "puts, merges waited for", None),
        ("put of 4,096 while merging, p50, ms", "put of 4,096 while merging, p50", None),
        ("p99, ms", "put of 4,096 while merging, p99", None),
        ("bytes written for each byte put", "bytes written for each byte put", None),
    )
    lines = ["## Growth", "", *_machine(section, "scale")]
    lines += table(
        ("", *(f"{size:,}" for size, _ in told)),
        ((label, *(median(each, name, unit) for _, each in told)) for label, name, unit in rows),
    )
    lines += ["![Cost against size](results/growth.svg)", ""]
    sized = [answer for _, answer in told]
    lines += _targets([each for each in section["answers"] if each not in sized])
    return lines


def _cluster(section: Section) -> list[str]:
    lines = ["## A cluster", "", *_machine(section, "cluster")]
    lines += prose(
        "Its nodes, etcd and the clients run on the same cores, so rates say little here. Losses, gaps and"
        " ratios count."
    )
    return [*lines, "", *_targets(section["answers"])]


def _placement(section: Section) -> list[str]:
    lines = ["## Placement", "", *_machine(section, "cluster")]
    lines += prose(
        "No node runs here: the benchmark computes maps and counts what differs between them."
        " [operating.md](../docs/operating.md#how-evenly-entries-lie-and-how-much-moves) has the figures for"
        " other numbers of nodes."
    )
    lines += ["", "![Balance and movement](results/placement.svg)", ""]
    return [*lines, *_targets({**answer, "beside": []} for answer in section["answers"])]


def _machine(section: Section, name: str) -> list[str]:
    machine = section["machine"]
    libraries = ", ".join(f"{library} {version}" for library, version in machine["libraries"].items())
    return [
        *prose(
            f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_bytes'] / (1 << 30):.0f} GiB,"
            f" {machine['kernel']}, Python {machine['python']}, {libraries}; {section['date'][:10]};"
            f" `make bench-{name}-full`."
        ),
        "",
    ]


def _targets(told: Iterable[Section]) -> list[str]:
    rows = []
    for answer in told:
        target, measured = answer["target"], answer["measured"]
        bound = ""
        if target is not None:
            sign = "≥" if target["bound"] == "min" else "≤"
            bound = f"{sign} {number(target['value'])} {measured['unit']}".rstrip()
        rows.append((f"**{answer['question'].strip()}**", bound, _spread(measured), answer["verdict"]))
        rows += [(each["name"], "", _spread(each), "") for each in answer["beside"]]
    return table(("", "target", "measured", ""), rows)


def _spread(figure: Section) -> str:
    text = f"{number(figure['median'])} {figure['unit']}".rstrip()
    if len(figure["rounds"]) > 1:
        text += f" ({number(figure['min'])} to {number(figure['max'])})"
    return text


def main() -> None:
    """Write the page, and the plots if matplotlib is there."""
    sections = read()
    PAGE.write_text(page(sections))
    figures = measured(sections)
    if figures is not None:
        PLANNED.write_text(json.dumps(figures, indent=1) + "\n")
    if importlib.util.find_spec("matplotlib") is not None:
        from bench import plots

        plots.draw(sections, RESULTS)


if __name__ == "__main__":
    main()
