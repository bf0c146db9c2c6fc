"""Rows of the table: runs of each, what is aimed at, and how that reads."""

import statistics

HEADERS = ("figure", "unit", "mvm", "before", "peer", "ratio", "to before", "aim", "")


def row(figure, unit, mvm, peer=(), before=(), **aims):
    """A figure with all its runs. An aim is a bound for mvm's median, or for its ratio to the peer's or to that of
    mvm before: `mvm_at_most`, `ratio_at_most`, `ratio_at_least`, `before_at_most`, `before_at_least`. An aim beside
    what was not measured is left out."""
    ours = statistics.median(mvm)
    values = {
        "mvm": ours,
        "ratio": ours / statistics.median(peer) if peer and statistics.median(peer) else None,
        "before": ours / statistics.median(before) if before and statistics.median(before) else None,
    }
    names = {"mvm": "mvm", "ratio": "ratio", "before": "to before"}
    texts, met = [], None
    for aim, bound in aims.items():
        what, _, direction = aim.partition("_at_")
        value = values[what]
        if value is None:
            continue
        sign = {"most": "≤", "least": "≥"}[direction]
        texts.append(f"{names[what]} {sign} {bound:g}" + (f" {unit}".rstrip() if what == "mvm" else ""))
        met = met is not False and (value <= bound if direction == "most" else value >= bound)
    return {
        "figure": figure,
        "unit": unit,
        "mvm": list(mvm),
        "before": list(before),
        "peer": list(peer),
        "ratio": values["ratio"],
        "to before": values["before"],
        "aim": ", ".join(texts),
        "met": met,
    }


def number(value):
    """Three digits that count."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def spread(runs):
    """The median, and the least and the most where there is more than one run."""
    if not runs:
        return ""
    median = number(statistics.median(runs))
    return median if len(runs) == 1 else f"{median} ({number(min(runs))}–{number(max(runs))})"


def cells(entry):
    ratios = ["" if entry[name] is None else f"{entry[name]:.2f}" for name in ("ratio", "to before")]
    verdict = {None: "", True: "met", False: "missed"}[entry["met"]]
    runs = [spread(entry[name]) for name in ("mvm", "before", "peer")]
    return [entry["figure"], entry["unit"], *runs, *ratios, entry["aim"], verdict]


def table(rows):
    """A table in Markdown, without the columns of mvm before where that was not measured."""
    lines = [list(HEADERS), *map(cells, rows)]
    if not any(entry["before"] for entry in rows):
        left_out = {HEADERS.index("before"), HEADERS.index("to before")}
        lines = [[cell for column, cell in enumerate(line) if column not in left_out] for line in lines]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    padded = ([cell.ljust(width) for cell, width in zip(line, widths)] for line in lines)
    return "\n".join("| " + " | ".join(line) + " |" for line in padded)
