"""Lines of the tables of benchmarks: what was measured, beside its target."""

from __future__ import annotations


def row(name: str, value: float, target: float | None, unit: str, *, at_least: bool = False) -> dict:
    """A line; `at_least` says that more is better."""
    passed = None if target is None else bool(value >= target if at_least else value <= target)
    sign = "" if target is None else "at least " if at_least else "at most "
    return {
        "name": name,
        "value": float(value),
        "target": "" if target is None else f"{sign}{target:g}",
        "unit": unit,
        "passed": passed,
    }


def as_table(rows: list[dict]) -> str:
    """Markdown of such lines."""
    lines = ["| what | value | target | reached |", "|---|---|---|---|"]
    lines += [f"| {r['name']} | {shown(r)} | {r['target']} | {reached(r)} |" for r in rows]
    return "\n".join(lines)


def shown(line: dict) -> str:
    """The value with its unit, whole numbers from 100 on; empty if there is none."""
    value = line["value"]
    if value != value:
        return ""
    return f"{value:,.0f} {line['unit']}".strip() if abs(value) >= 100 else f"{value:.3g} {line['unit']}".strip()


def reached(line: dict) -> str:
    """Whether the target was reached; empty where there is none."""
    return {True: "yes", False: "**no**", None: ""}[line["passed"]]
