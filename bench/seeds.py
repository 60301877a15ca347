"""
Several runs' results.json -> one table and one figure: how much of a number is the seed?

    python bench/seeds.py out/lora_undo/*seed*                  # markdown on stdout
    python bench/seeds.py out/lora_undo/*seed* --out seeds.png  # and the means with each seed's points

A stage is a key of results.json that holds {metric: {value, n, ...}}, as before and after. The interval in a
run is over its items and says nothing about seeds: here a seed is one observation. Rates are in percent; what
is above 1 in any run (perplexity) stands as it is, and is not drawn.
"""
import argparse
import json
import sys
from pathlib import Path
from statistics import mean

def is_stage(value):
    metrics = list(value.values()) if isinstance(value, dict) else []
    whole = [isinstance(m, dict) and "value" in m for m in metrics]
    return any(whole) and all(known or isinstance(m, float) for known, m in zip(whole, metrics))

def read(folders):
    """-> {metric: {stage: [{value, n, ...} of each run]}}; what a run lacks is left out, and said."""
    runs, table, missing = [], {}, []
    for folder in folders:
        path = folder / "results.json"
        try:
            runs.append(json.loads(path.read_text()))
            for stage in filter(is_stage, runs[-1].values()):  # a number without an interval: AUPRC
                stage |= {name: {"value": m} for name, m in stage.items() if isinstance(m, float)}
        except (OSError, ValueError) as e:
            sys.exit(f"seeds: {path}: {e}")
    for stage in dict.fromkeys(key for run in runs for key in run if is_stage(run[key])):
        for name in dict.fromkeys(name for run in runs for name in run.get(stage, {})):
            found = [run.get(stage, {}).get(name, {}) for run in runs]
            if all(m.get("value") is not None for m in found):
                table.setdefault(name, {})[stage] = found
            else:
                missing.append(f"{stage} {name}")
    if missing:
        print(f"seeds: not in every run, left out: {', '.join(missing)}", file=sys.stderr)
    return table or sys.exit("seeds: these runs have no stage of {metric: {value, n, ...}} in common")

def is_rate(row):
    return all(0 <= m["value"] <= 1 for found in row.values() for m in found)

def print_table(table, names, stages):
    """one row a metric: n, then for each stage the seeds in the order of the runs, and their mean."""
    print(f"runs, in the order of the columns: {', '.join(names)}\n")
    print("| metric | n | " + " | ".join(f"{stage}, by seed | mean" for stage in stages) + " |")
    print("|---|---|" + "---|---|" * len(stages))
    for name, row in table.items():
        sizes = sorted({m["n"] for stage in stages for m in row.get(stage, []) if "n" in m})
        cells = [name, " to ".join(str(n) for n in dict.fromkeys(sizes[:1] + sizes[-1:]))]
        scale, digits = (100, ".1f") if is_rate(row) else (1, ".2f")
        for stage in stages:
            values = [scale * m["value"] for m in row.get(stage, [])]
            cells.append(", ".join(format(v, digits) for v in values))
            cells.append(format(mean(values), digits) if values else "")
        print(f"| {' | '.join(cells)} |")

def print_points(table, stages):
    """one row a stage, which saw fewer metrics than the first: the mean of each, and the seeds behind it."""
    names = [name for name in table if stages[0] in table[name] and name.rpartition("/")[0] not in table]
    print("\n| stage | " + " | ".join(names) + " |\n|---|" + "---|" * len(names))
    for stage in stages:
        cells = [stage]
        for name in names:
            scale, digits = (100, ".1f") if is_rate(table[name]) else (1, ".2f")
            values = [scale * m["value"] for m in table[name].get(stage, [])]
            each = ", ".join(format(v, digits) for v in values)
            cells.append(f"{mean(values):{digits}} ({each})" if values else "")
        print(f"| {' | '.join(cells)} |")

def print_stages(table, names, stages):
    """one row a metric, a column a stage: the mean, and the seeds behind it."""
    print(f"runs, in the order of the numbers: {', '.join(names)}\n")
    print(f"| metric | {' | '.join(stages)} |\n|---|{'---|' * len(stages)}")
    for name, row in table.items():
        scale, digits = (100, ".0f") if is_rate(row) else (1, ".1f")
        cells = [name]
        for stage in stages:
            values = [scale * m["value"] for m in row.get(stage, [])]
            each = ", ".join(format(v, digits) for v in values)
            cells.append(f"{mean(values):{digits}} ({each})" if values else "")
        print(f"| {' | '.join(cells)} |")

def draw(table, stages, path):
    """a line for each metric, without the further scorers of a suite: of a/b and a/b/c only the first."""
    import matplotlib.figure  # and no pyplot: nothing to show, nothing to close
    rows = {name: row for name, row in table.items() if is_rate(row) and name.rpartition("/")[0] not in table}
    if not rows:
        sys.exit("seeds: no rate to draw")
    fig = matplotlib.figure.Figure(figsize=(8, 1.2 + 0.4 * len(rows)), layout="constrained")
    ax = fig.subplots()
    for s, stage in enumerate(stages):
        shift, colour = 0.15 * (2 * s - len(stages) + 1), f"C{s}"
        for y, row in enumerate(rows.values()):
            values = [100 * m["value"] for m in row.get(stage, [])]
            ax.plot(values, [y + shift] * len(values), "o", color=colour, alpha=0.5, markersize=5)
            if values:
                ax.plot(mean(values), y + shift, "|", color=colour, markersize=14, markeredgewidth=3)
        ax.plot([], [], "o", color=colour, label=stage)
    ax.set_yticks(range(len(rows)), rows)
    ax.set(xlabel="%, a point a seed, a bar for their mean", xlim=(-2, 102), ylim=(len(rows) - .5, -.5))
    ax.grid(axis="x", alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(stages))
    fig.savefig(path, dpi=130)
    print(f"wrote {path}", file=sys.stderr)

def main():
    p = argparse.ArgumentParser(description="one table and one figure of several runs")
    p.add_argument("runs", nargs="+", type=Path, help="folders with a results.json")
    p.add_argument("--out", type=Path, help="figure: .png, .pdf or .svg")
    a = p.parse_args()
    table = read(a.runs)
    stages = list(dict.fromkeys(stage for row in table.values() for stage in row))
    whole = [stage for stage in stages if len(stages) <= 3 or stage in ("before", "after")]
    names = [folder.name for folder in a.runs]
    if not whole:  # safechain.py: no before and after, but strategies and tunings
        return print_stages(table, names, stages)
    print_table(table, names, whole)
    if len(whole) < len(stages):
        print_points(table, [stage for stage in stages if stage not in whole])
    if a.out:
        draw(table, whole, a.out)

if __name__ == "__main__":
    main()
