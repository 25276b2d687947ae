"""A picture of accuracy over budgets of MACs, a line for each recipe, from a results file."""

import json
from collections import Counter
from pathlib import Path
from statistics import mean


def plot(results: Path, picture: Path) -> None:
    """Write a PNG of the results file's runs: means over seeds."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    found = json.loads(results.read_text())
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    budgets = [macs / 1e6 for macs in found["task"]["budgets"].values()]
    seeds = Counter(run["recipe"] for run in found["runs"])
    alike = len(set(seeds.values())) == 1
    for name in sorted(seeds, key=lambda n: n != "fedofa"):
        runs = [run for run in found["runs"] if run["recipe"] == name]
        accuracy = [100 * mean(c) for c in zip(*(run["accuracy"] for run in runs), strict=True)]
        wide = 2.5 if name == "fedofa" else 1.2
        style = "--" if name == "fedavg-separate" else "-"
        axes.plot(budgets, accuracy, style, marker="o", linewidth=wide)
        axes.lines[-1].set_label(name if alike else f"{name} ({seeds[name]} seeds)")
    axes.set_xscale("log")
    axes.set_xticks(budgets, [f"{budget:.2g}" for budget in budgets])
    axes.minorticks_off()
    axes.set_xlabel("budget, million MACs")
    axes.set_ylabel("test accuracy, %")
    many = f"{max(seeds.values())} seeds" if alike else "seeds"
    axes.set_title(f"{found['task']['data']}: best subnet in each budget, mean of {many}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=110)
    pyplot.close(figure)
