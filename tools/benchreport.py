# SPDX-License-Identifier: BSD-3-Clause
"""Results of benchmarks as CSV and HTML, and two of them side by side.

A result has `rate`, `limit` and `ratio` (medians) and `runs`, each with a `rate` and the `limit` that was measured next to it;
where it is of several cases, `cases` has as much of each.
"""
import csv
import html
import random
import statistics

RESAMPLES = 4000
CONFIDENCE = 0.95
LEAST_RUNS = 5  # of fewer the bootstrap finds differences where there are none
FIGURES = {"rate", "limit", "ratio", "ratio_min", "ratio_max", "worst", "limited_by_flow_control"}  # found, not told


class ReportError(Exception):
    """Says what is wrong with which result."""


def medians(runs):
    """What a result, or a case of it, says of its runs."""
    if not all(run["rate"] > 0 and run["limit"] > 0 for run in runs):
        raise ReportError("of a run nothing came: this machine is too busy")
    rate, limit = (statistics.median(run[key] for run in runs) for key in ("rate", "limit"))
    ratios = [run["rate"] / run["limit"] for run in runs]
    return {"rate": rate, "limit": limit, "ratio": rate / limit, "ratio_min": min(ratios), "ratio_max": max(ratios), "runs": runs}


def runs_of(result):
    """{case: [(rate, limit)]}; the case of a result without any is its benchmark."""
    try:
        parts = result.get("cases") or [result]
        found = {part.get("case", result["benchmark"]): [(run["rate"], run["limit"]) for run in part["runs"]] for part in parts}
        if all(runs and all(rate > 0 and limit > 0 for rate, limit in runs) for runs in found.values()):
            return found
    except (KeyError, TypeError, AttributeError):
        pass
    name = result.get("benchmark", "nothing known") if isinstance(result, dict) else "nothing known"
    raise ReportError(f"a result of {name} has no rates and limits")


def options_of(result):
    return {key: value for key, value in result.items() if isinstance(value, (str, int, float, bool)) and key not in FIGURES}


def write_csv(result, path):
    with open(path, "w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["benchmark", "case", "run", "unit", "rate", "limit", "ratio"])
        for case, runs in runs_of(result).items():
            for number, (rate, limit) in enumerate(runs, 1):
                out.writerow([result["benchmark"], case, number, result["unit"], rate, limit, rate / limit])


# --- two results ------------------------------------------------------------------------------------------------------

def ratios(runs):
    return [rate / limit for rate, limit in runs]


def interval(before, after):
    """Of the quotient of the medians, by the bootstrap: @return (least, most) that it is with CONFIDENCE."""
    rng = random.Random(1)
    quotients = sorted(statistics.median(rng.choices(after, k=len(after))) / statistics.median(rng.choices(before, k=len(before)))
                       for _ in range(RESAMPLES))
    cut = round(RESAMPLES * (1 - CONFIDENCE) / 2)
    return quotients[cut], quotients[-1 - cut]


def compare(before, after):
    """What changed in the ratio to the limit, which machines differ in less than in rates.
    @return rows, and the options that are not the same: {name: (before, after)}"""
    cases, others = runs_of(before), runs_of(after)
    common = [case for case in cases if case in others]
    if before["benchmark"] != after["benchmark"] or not common:
        raise ReportError(f"{before['benchmark']} and {after['benchmark']} have no case in common")
    rows = []
    for case in common:
        one, two = ratios(cases[case]), ratios(others[case])
        low, high = interval(one, two)
        gain = (low, high) if before["unit"] != "us" else (1 / high, 1 / low)  # of times, less is better
        rows.append({"case": case, "before": statistics.median(one), "after": statistics.median(two),
                     "change": statistics.median(two) / statistics.median(one), "low": low, "high": high,
                     "verdict": verdict(min(len(one), len(two)), *gain)})
    one, two = options_of(before), options_of(after)
    return rows, {key: (one.get(key), two.get(key)) for key in sorted({*one, *two}) if one.get(key) != two.get(key)}


def verdict(nb_runs, low, high):
    """@param low, high  bounds of the gain"""
    if nb_runs < LEAST_RUNS:
        return f"fewer than {LEAST_RUNS} runs say nothing"
    return "better" if low > 1 else "worse" if high < 1 else "no difference shown"


def show_comparison(rows, differences):
    for option, (before, after) in differences.items():
        print(f"not the same: {option} is {before} before, {after} after")
    print(f"{'ratio to the limit, medians':28}{'before':>8}{'after':>8}{'change':>9}   {CONFIDENCE:.0%} of it lie within")
    for row in rows:
        print(f"{row['case']:28}{row['before']:>8.3f}{row['after']:>8.3f}{row['change']:>8.2f}x   "
              f"{row['low']:.2f} to {row['high']:.2f}: {row['verdict']}")


# --- HTML -------------------------------------------------------------------------------------------------------------

STYLE = """body{font:15px sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:1em 0}td,th{padding:.25em .8em;border-bottom:1px solid #ccc;text-align:right}
td:first-child,th:first-child{text-align:left}svg{max-width:100%}.limit{fill:#999}.rate{fill:#06c}text{font:12px sans-serif}"""


def table(head, rows):
    cells = lambda tag, row: "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in row)  # noqa: E731 (local, one line)
    return f"<table><tr>{cells('th', head)}</tr>" + "".join(f"<tr>{cells('td', row)}</tr>" for row in rows) + "</table>"


def plot(cases, unit):
    """A line a case: a grey dot for each limit, a blue one for each rate, along one axis from 0."""
    left, width, height = 170, 520, 28
    most = max(value for runs in cases.values() for run in runs for value in run)
    place = lambda value: left + width * value / most  # noqa: E731 (local, one line)
    lines = []
    for row, (case, runs) in enumerate(cases.items()):
        y = height * row + height / 2
        lines.append(f'<text x="0" y="{y + 4}">{html.escape(case)}</text>'
                     f'<line x1="{left}" x2="{left + width}" y1="{y}" y2="{y}" stroke="#ddd"/>')
        for rate, limit in runs:
            lines += [f'<circle class="limit" cx="{place(limit):.1f}" cy="{y}" r="4"/>',
                      f'<circle class="rate" cx="{place(rate):.1f}" cy="{y}" r="4"/>']
    bottom = height * len(cases) + 16
    lines += [f'<text x="{left}" y="{bottom}">0</text>',
              f'<text x="{left + width}" y="{bottom}" text-anchor="end">{most:,.0f} {html.escape(unit)}</text>']
    return f'<svg viewBox="0 0 {left + width + 10} {bottom + 8}" xmlns="http://www.w3.org/2000/svg">{"".join(lines)}</svg>'


def write_html(result, path):
    cases, name = runs_of(result), result["benchmark"]
    figures = []
    for case, runs in cases.items():
        rate, limit = (statistics.median(values) for values in zip(*runs))
        of_runs = ratios(runs)
        figures.append((case, f"{rate:,.0f}", f"{limit:,.0f}", f"{rate / limit:.3f}", f"{min(of_runs):.3f} to {max(of_runs):.3f}",
                        len(runs)))
    path.write_text(f"""<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>{html.escape(name)}</title>
<style>{STYLE}</style><h1>{html.escape(name)}</h1>
<p>The fabric (blue) against the limit of the same device in the same run (grey), {html.escape(result['unit'])}.</p>
{plot(cases, result['unit'])}
{table(("medians", "rate", "limit", "ratio", "of neighbours", "runs"), figures)}
<h2>Where</h2>{table(("", ""), result.get("environment", {}).items())}
<h2>Of what</h2>{table(("", ""), options_of(result).items())}</html>
""")
