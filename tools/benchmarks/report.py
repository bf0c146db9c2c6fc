"""Rows of the table: runs of both, what is aimed at, and how that reads."""

import statistics

HEADERS = ("figure", "unit", "mvm", "QEMU", "ratio", "aim", "")


def row(figure, unit, mvm, qemu, ratio_at_most=None, ratio_at_least=None, mvm_at_most=None):
    """A figure with all its runs. An aim is a bound for the ratio of the medians, or for mvm's median."""
    ours = statistics.median(mvm)
    ratio = ours / statistics.median(qemu) if qemu else None
    aim, met = "", None
    if ratio_at_most is not None:
        aim, met = f"ratio ≤ {ratio_at_most:g}", ratio <= ratio_at_most
    elif ratio_at_least is not None:
        aim, met = f"ratio ≥ {ratio_at_least:g}", ratio >= ratio_at_least
    elif mvm_at_most is not None:
        aim, met = f"mvm ≤ {mvm_at_most:g} {unit}", ours <= mvm_at_most
    return {"figure": figure, "unit": unit, "mvm": mvm, "qemu": qemu, "ratio": ratio, "aim": aim, "met": met}


def number(value):
    """Three digits that count."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def spread(runs):
    """The median, and the least and the most where there is more than one run."""
    if not runs:
        return ""
    median = number(statistics.median(runs))
    return median if len(runs) == 1 else f"{median} ({number(min(runs))}–{number(max(runs))})"


def table(rows):
    """A table in Markdown."""
    lines = [list(HEADERS)]
    for entry in rows:
        ratio = "" if entry["ratio"] is None else f"{entry['ratio']:.2f}"
        verdict = {None: "", True: "met", False: "missed"}[entry["met"]]
        runs = [spread(entry["mvm"]), spread(entry["qemu"])]
        lines.append([entry["figure"], entry["unit"], *runs, ratio, entry["aim"], verdict])
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADERS))]
    lines.insert(1, ["-" * width for width in widths])
    padded = ([cell.ljust(width) for cell, width in zip(line, widths)] for line in lines)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in padded)
