"""The pictures and numbers of docs/local-hessian.md: the paper's statements as experiments.

    python docs/figures/local_hessian.py --out docs

writes images/local-hessian-*.png and figures/local-hessian.json (every number that the guide
quotes) below --out, in about a minute on two cores. Everything is float64 on the CPU and seeded.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from functools import cache
from pathlib import Path
from typing import Any

import experiments as ex
import matplotlib
import torch
from matplotlib.figure import Figure

import lhkernels as lh

# Readable on a phone: 900 pixels wide, large letters; lines differ in dashes and markers.
STYLE = {
    "one": {"color": "black", "linestyle": "-", "marker": "o"},
    "two": {"color": "#c1440e", "linestyle": "--", "marker": "s"},
    "three": {"color": "#1f6fb2", "linestyle": ":", "marker": "^"},
    "four": {"color": "#4d4d4d", "linestyle": "-.", "marker": "D"},
}
Numbers = dict[str, Any]


def draw_initialisation() -> tuple[Figure, Numbers]:
    """H_z of a linear layer: Gaussian weights against the law (10)-(11), and orthonormal ones."""
    n_in, seeds = 1000, 5
    figure, panels = new_figure(2)
    numbers: Numbers = {"n_in": n_in, "seeds": seeds}
    for axes, ratio in zip(panels, (0.5, 2.0)):

        def found(kind: str, seed: int, n_out: int = round(ratio * n_in)) -> lh.Spectrum:
            return ex.input_spectrum(ex.linear(n_in, n_out, kind, seed), torch.randn(1, n_in))

        law = lh.MarchenkoPastur(ratio)
        gaussian = [found("gaussian", seed) for seed in range(seeds)]
        histogram(axes, gaussian[-1], law, f"c = n_out / n_in = {ratio:g}")
        spike = axes.get_ylim()[1]
        axes.plot([1, 1], [0, spike], color="black", linewidth=3.5, label="orthonormal W")
        numbers[f"c={ratio:g}"] = {
            "distance_to_law": ex.spread([ex.kolmogorov_distance(S, law) for S in gaussian]),
            "condition_gaussian": ex.spread([S.condition_number for S in gaussian]),
            "condition_orthonormal": found("orthogonal", 0).condition_number,
        }
    panels[0].set_ylabel("density of non-zero ones")
    panels[1].legend(loc="upper right")
    return figure, numbers


def draw_weight_scale() -> tuple[Figure, Numbers]:
    """Remark 2: the spectrum of H_z against the scale of the weights, with and without BN."""
    n_in, n_out, samples, seeds = 48, 32, 24, 5
    scales = [10.0**k for k in (-4, -3, -2, -1, 0, 1, 2)]

    def largest(scale: float, seed: int, norm: bool, approximate: bool = False) -> float:
        block = ex.linear(n_in, n_out, "gaussian", seed, scale)
        x = torch.randn(samples, n_in)
        block = ex.with_norm(block) if norm else block
        return ex.input_spectrum(block, x, approximate).largest

    cases = {
        "linear": ex.over(scales, seeds, largest, norm=False),
        "with BN, (17)": ex.over(scales, seeds, largest, norm=True, approximate=True),
        "with BN, exact": ex.over(scales, seeds, largest, norm=True),
    }
    figure, (axes, right) = new_figure(2)
    for (name, values), style in zip(cases.items(), STYLE.values()):
        axes.loglog(scales, [v["mean"] for v in values], label=name, **style)
    axes.set(xlabel="weights multiplied by", ylabel="largest eigenvalue of H_z")
    axes.legend()

    wide, ratio = 1000, 0.5
    block = ex.with_norm(ex.linear(wide, round(ratio * wide), "gaussian", 0, 37.0))
    found = ex.input_spectrum(block, torch.randn(4000, wide), approximate=True)
    law = lh.MarchenkoPastur(ratio, normalized=True)
    histogram(right, found, law, "with BN, (17), weights x 37")
    right.legend()
    distance = ex.kolmogorov_distance(found, law)
    sizes = {"n_in": n_in, "n_out": n_out, "samples": samples, "seeds": seeds, "scales": scales}
    in_wide = {"n_in": wide, "ratio": ratio, "samples": 4000, "distance_to_law": distance}
    return figure, {**sizes, "largest": cases, "wide": in_wide}


def draw_batch_norm_input() -> tuple[Figure, Numbers]:
    """Remark 3: diag(H_w) ||w||^2 / m for inputs that a BN has normalised; 1 is the statement."""
    n, rows, seeds = 64, 16, 8
    numbers: Numbers = {"n_in": n, "rows": rows, "seeds": seeds}
    figure, axes = new_figure(1)
    inputs = ("independent", "digits", "digits, ReLU")
    for offset, (form, style) in zip((-0.12, 0.12), zip(("(18)", "exact"), STYLE.values())):
        for position, name in enumerate(inputs):
            values, conditions = ex.normalised_diagonals(name, n, rows, seeds, form == "(18)")
            mean = values.mean().item()
            ends = values.quantile(torch.tensor([0.05, 0.95]), interpolation="nearest").tolist()
            axes.errorbar(
                position + offset, mean, [[mean - ends[0]], [ends[1] - mean]],
                label=None if position else form, color=style["color"], marker=style["marker"],
                markersize=10, linewidth=2.5, capsize=7,
            )  # fmt: skip
            found = {"mean": mean, "from_5_to_95_percent": ends}
            numbers[f"{name}, {form}"] = {**found, "condition": ex.spread(conditions)}
    axes.axhline(1, color="black", linewidth=1)
    ticks = ["BN of\nindependent", "BN of\ndigits", "BN of digits,\nthen ReLU"]
    axes.set_xticks(range(len(inputs)), ticks)
    axes.set(ylabel="diag(H_w) ||w||² / m", xlim=(-0.5, len(inputs) - 0.5))
    axes.legend(title="H_w")
    return figure, numbers


def draw_skip_scale() -> tuple[Figure, Numbers]:
    """Remark 1: cond(I + J) and cond(J) against the largest singular value of J."""
    n, seeds = 128, 5
    figure, (axes, right) = new_figure(2)

    def lines(axes: Any, x: list[float], seeds: int, jacobian: Any) -> Numbers:
        found = {
            "J, no skip": ex.over(x, seeds, lambda *at: ex.condition(jacobian(*at))),
            "I + J": ex.over(x, seeds, lambda *at: ex.condition(jacobian(*at), skip=True)),
        }
        draw_spreads(axes, x, found)
        axes.set_yscale("log")
        return found

    scales = [0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.2, 1.5, 2.0, 3.0]
    condition = lines(axes, scales, seeds, lambda s, seed: ex.branch_jacobian(n, s, seed))
    inside = [s / 50 for s in range(5, 49)]
    axes.plot(inside, [(1 + s) / (1 - s) for s in inside], "k:", label="(1+s) / (1-s)")
    what = "s, largest singular value of J"
    axes.set(xlabel=what, ylabel="condition number", title="linear, ReLU, linear")
    axes.legend()

    gains, jacobian = [0.02, 0.05, 0.1, 0.2, 0.5, 1.0], cache(ex.residual_jacobian)
    convolutional = {
        "seeds": 3,
        "gamma": gains,
        "s": ex.over(gains, 3, lambda *at: torch.linalg.matrix_norm(jacobian(*at), 2).item()),
        "condition": lines(right, gains, 3, jacobian),
        "dim": len(jacobian(gains[0], 0)),
    }
    what = "gamma of the branch's last BN"
    right.set(xscale="log", xlabel=what, title="conv, BN, ReLU, conv, BN")
    numbers = {"n": n, "seeds": seeds, "s": scales, "condition": condition}
    return figure, {**numbers, "convolutional": convolutional}


def draw_skip_kinds() -> tuple[Figure, Numbers]:
    """Identity, orthogonal and other skips: one block, and a chain of blocks."""
    n, scale, seeds = 128, 0.5, 20
    figure, (axes, right) = new_figure(2)

    def one_block(ratio: float | None, seed: int) -> float:
        return ex.chain_condition(n, ratio, scale, [seed])

    def whole_chain(depth: int, seed: int, ratio: float | None) -> float:
        return ex.chain_condition(n, ratio, scale, range(100 * seed, 100 * seed + depth))

    ratios = [1.0, 1.5, 2.0, 3.0, 10.0, 100.0]
    by_ratio = ex.over(ratios, seeds, one_block)
    (identity,) = ex.over([None], seeds, one_block)
    draw_spreads(axes, ratios, {"S + J": by_ratio}, ["two"])
    axes.axhline(identity["median"], color="black", label="I + J")
    axes.loglog()
    skip = "condition number of the skip S\n(1: orthogonal)"
    axes.set(xlabel=skip, ylabel="condition number", title="one block")
    axes.legend()

    depths = [1, 2, 4, 6, 8, 10]
    skips = {"no skip": 0.0, "S with cond 3": 3.0, "orthogonal": 1.0, "identity": None}
    chains = {name: ex.over(depths, 5, whole_chain, ratio=r) for name, r in skips.items()}
    draw_spreads(right, depths, chains, ["four", "two", "three", "one"])
    right.set(yscale="log", xlabel="blocks in a chain", title="the whole chain")
    right.legend()
    numbers = {"n": n, "s": scale, "seeds": seeds, "skip_condition": ratios, "condition": by_ratio}
    in_chain = {"seeds": 5, "depth": depths, "condition": chains}
    return figure, {**numbers, "identity": identity, "chain": in_chain}


PICTURES = {
    "initialisation": draw_initialisation,
    "weight-scale": draw_weight_scale,
    "batch-norm-input": draw_batch_norm_input,
    "skip-scale": draw_skip_scale,
    "skip-kinds": draw_skip_kinds,
}


def new_figure(columns: int) -> tuple[Figure, Any]:
    matplotlib.rcParams.update({"font.size": 15, "axes.titlesize": 15, "legend.fontsize": 13})
    matplotlib.rcParams.update({"axes.grid": True, "grid.alpha": 0.3})
    width = 6.2 * columns if columns > 1 else 7.5
    figure = Figure(figsize=(width, 4.6), dpi=90, layout="constrained")
    return figure, figure.subplots(1, columns)


def histogram(axes: Any, S: lh.Spectrum, law: lh.MarchenkoPastur, title: str) -> None:
    """Non-zero eigenvalues as a density of all of them, and the law's continuous part."""
    kept = S.eigenvalues != 0
    bins, high = 40, law.support.high * 1.02
    heights = S.weights[kept].numpy() * bins / high
    axes.hist(
        S.eigenvalues[kept].numpy(), bins=bins, range=(0, high), weights=heights,
        color="#c9c9c9", edgecolor="#8a8a8a", label="Gaussian W",
    )  # fmt: skip
    x = torch.linspace(law.support.low, law.support.high, 400)[1:-1]
    axes.plot(x, law.pdf(x), color="#c1440e", linewidth=3, linestyle="--", label="the law")
    axes.set(title=title, xlabel="eigenvalue of H_z")


def draw_spreads(axes: Any, x: list[float], lines: Numbers, styles: Any = tuple(STYLE)) -> None:
    """Lines of the medians over seeds, and from the least to the largest as a band."""
    for (label, values), style in zip(lines.items(), map(STYLE.get, styles)):
        median, least, largest = ([v[k] for v in values] for k in ("median", "least", "largest"))
        axes.plot(x, median, label=label, linewidth=2.5, markersize=8, **style)
        axes.fill_between(x, least, largest, color=style["color"], alpha=0.2, linewidth=0)


def four_digits(number: str) -> float:
    """Beyond them rounding differs between machines."""
    return float(f"{float(number):.4g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1], metavar="DIR")
    out = parser.parse_args().out
    torch.set_default_dtype(torch.float64)
    images, file = out / "images", out / "figures" / "local-hessian.json"
    images.mkdir(parents=True, exist_ok=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    numbers = {}
    for name, draw in PICTURES.items():
        started = time.perf_counter()
        figure, found = draw()
        figure.savefig(images / f"local-hessian-{name}.png")
        numbers[name] = json.loads(json.dumps(found), parse_float=four_digits)
        print(f"{name}: {time.perf_counter() - started:.1f} s")
    numbers["made with"] = {"torch": torch.__version__, "python": platform.python_version()}
    file.write_text(json.dumps(numbers, indent=1) + "\n")


if __name__ == "__main__":
    main()
