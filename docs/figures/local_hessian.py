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
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from experiments import (
    branch_jacobian,
    chain_condition,
    condition,
    condition_of_jacobian,
    input_spectrum,
    jacobian,
    kolmogorov_distance,
    linear,
    normalised_input,
    residual_branch,
    skip_matrix,
    spread,
    values_of,
)
from matplotlib.figure import Figure
from torch import Tensor, nn

import lhkernels as lh

# Readable on a phone: 900 pixels wide, large letters; lines differ in dashes and markers.
STYLE = {
    "one": {"color": "black", "linestyle": "-", "marker": "o"},
    "two": {"color": "#c1440e", "linestyle": "--", "marker": "s"},
    "three": {"color": "#1f6fb2", "linestyle": ":", "marker": "^"},
    "four": {"color": "#4d4d4d", "linestyle": "-.", "marker": "D"},
}
Numbers = dict[str, Any]


def draw_initialisation(path: Path) -> Numbers:
    """H_z of a linear layer: Gaussian weights against the law (10)-(11), and orthonormal ones."""
    n_in, seeds = 1000, 5
    figure, panels = new_figure(1, 2)
    numbers: Numbers = {"n_in": n_in, "seeds": seeds}
    for axes, ratio in zip(panels, (0.5, 2.0)):
        n_out = round(ratio * n_in)
        law = lh.MarchenkoPastur(ratio)
        distances, conditions = [], []
        for seed in range(seeds):
            found = input_spectrum(linear(n_in, n_out, "gaussian", seed), torch.randn(1, n_in))
            distances.append(kolmogorov_distance(values_of(found), law))
            conditions.append(found.condition_number)
        orthonormal = input_spectrum(linear(n_in, n_out, "orthogonal", 0), torch.randn(1, n_in))
        histogram(axes, values_of(found), law, f"c = n_out / n_in = {ratio:g}")
        spike = axes.get_ylim()[1]
        axes.plot([1, 1], [0, spike], color="black", linewidth=3.5, label="orthonormal W")
        axes.set_xlabel("eigenvalue of H_z")
        numbers[f"c={ratio:g}"] = {
            "distance_to_law": spread(distances),
            "condition_gaussian": spread(conditions),
            "condition_orthonormal": orthonormal.condition_number,
        }
    panels[0].set_ylabel("density of non-zero ones")
    panels[1].legend(loc="upper right")
    figure.savefig(path)
    return numbers


def draw_weight_scale(path: Path) -> Numbers:
    """Remark 2: the spectrum of H_z against the scale of the weights, with and without BN."""
    n_in, n_out, samples, seeds = 48, 32, 24, 5
    scales = [10.0**k for k in (-4, -3, -2, -1, 0, 1, 2)]
    cases = {"linear": [], "with BN, (17)": [], "with BN, exact": []}
    for scale in scales:
        largest: dict[str, list[float]] = {name: [] for name in cases}
        for seed in range(seeds):
            layer = linear(n_in, n_out, "gaussian", seed, scale)
            x = torch.randn(samples, n_in)
            block = nn.Sequential(layer, nn.BatchNorm1d(n_out).double())
            largest["linear"].append(input_spectrum(layer, x).largest)
            largest["with BN, (17)"].append(input_spectrum(block, x, approximate=True).largest)
            largest["with BN, exact"].append(input_spectrum(block, x).largest)
        for name, values in largest.items():
            cases[name].append(spread(values))
    figure, (axes, right) = new_figure(1, 2)
    for (name, values), style in zip(cases.items(), STYLE.values()):
        axes.loglog(scales, [v["mean"] for v in values], label=name, **style)
    axes.set_xlabel("weights multiplied by")
    axes.set_ylabel("largest eigenvalue of H_z")
    axes.legend()

    wide, ratio = 1000, 0.5
    layer = linear(wide, round(ratio * wide), "gaussian", 0, 37.0)
    block = nn.Sequential(layer, nn.BatchNorm1d(layer.out_features).double())
    found = input_spectrum(block, torch.randn(4000, wide), approximate=True)
    law = lh.MarchenkoPastur(ratio, normalized=True)
    histogram(right, values_of(found), law, "with BN, (17), weights x 37")
    right.set_xlabel("eigenvalue of H_z")
    right.legend()
    figure.savefig(path)
    return {
        "n_in": n_in,
        "n_out": n_out,
        "samples": samples,
        "seeds": seeds,
        "scales": scales,
        "largest": cases,
        "wide": {
            "n_in": wide,
            "ratio": ratio,
            "samples": 4000,
            "distance_to_law": kolmogorov_distance(values_of(found), law),
        },
    }


def draw_batch_norm_input(path: Path) -> Numbers:
    """Remark 3: diag(H_w) ||w||^2 / m for inputs that a BN has normalised; 1 is the statement."""
    n, rows, seeds = 64, 16, 8
    numbers: Numbers = {"n_in": n, "rows": rows, "seeds": seeds}
    figure, axes = new_figure(1, 1)
    inputs = ("independent", "digits", "digits, ReLU")
    for offset, (form, style) in zip((-0.12, 0.12), zip(("(18)", "exact"), STYLE.values())):
        for position, name in enumerate(inputs):
            values, conditions = [], []
            for seed in range(seeds):
                layer = linear(n, rows, "gaussian", seed)
                x = normalised_input(name, n, seed)
                # eps plays no part in the statement.
                block = nn.Sequential(layer, nn.BatchNorm1d(rows, eps=1e-12).double())
                H = lh.LocalHessian(block, x, approximate=form == "(18)").dense()
                blocks = H.view(rows, n, rows, n).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
                norms = layer.weight.detach().square().sum(1, keepdim=True)
                values += (blocks.diagonal(dim1=1, dim2=2) * norms / len(x)).flatten().tolist()
                conditions.append(condition(torch.linalg.eigvalsh(blocks[0])))
            ordered = sorted(values)
            low, high = (ordered[round(q * (len(ordered) - 1))] for q in (0.05, 0.95))
            mean = fmean(values)
            axes.errorbar(
                position + offset,
                mean,
                [[mean - low], [high - mean]],
                color=style["color"],
                marker=style["marker"],
                markersize=10,
                linewidth=2.5,
                capsize=7,
                label=f"{form}" if position == 0 else None,
            )
            numbers[f"{name}, {form}"] = {
                "mean": mean,
                "from_5_to_95_percent": [low, high],
                "condition": spread(conditions),
            }
    axes.axhline(1, color="black", linewidth=1)
    axes.set_xticks(
        range(len(inputs)), ["BN of\nindependent", "BN of\ndigits", "BN of digits,\nthen ReLU"]
    )
    axes.set_ylabel("diag(H_w) ||w||² / m")
    axes.set_xlim(-0.5, len(inputs) - 0.5)
    axes.legend(title="H_w")
    figure.savefig(path)
    return numbers


def draw_skip_scale(path: Path) -> Numbers:
    """Remark 1: cond(I + J) and cond(J) against the largest singular value of J."""
    n, seeds = 128, 5
    scales = [0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.2, 1.5, 2.0, 3.0]
    lines: dict[str, list[dict[str, float]]] = {"J, no skip": [], "I + J": []}
    for scale in scales:
        found: dict[str, list[float]] = {name: [] for name in lines}
        for seed in range(seeds):
            J = branch_jacobian(n, scale, seed)
            found["J, no skip"].append(condition_of_jacobian(J))
            found["I + J"].append(condition_of_jacobian(torch.eye(n) + J))
        for name, values in found.items():
            lines[name].append(spread(values))
    figure, (axes, right) = new_figure(1, 2)
    for (name, values), style in zip(lines.items(), STYLE.values()):
        draw_spread(axes, scales, values, name, style)
    inside = [s / 50 for s in range(5, 49)]
    axes.plot(inside, [(1 + s) / (1 - s) for s in inside], "k:", label="(1+s) / (1-s)")
    axes.set_yscale("log")
    axes.set_xlabel("s, largest singular value of J")
    axes.set_ylabel("condition number")
    axes.set_title("linear, ReLU, linear")
    axes.legend()
    numbers = {"n": n, "seeds": seeds, "s": scales, "condition": lines}

    gains = [0.02, 0.05, 0.1, 0.2, 0.5, 1.0]
    conv: dict[str, list[dict[str, float]]] = {"J, no skip": [], "I + J": []}
    largest = []
    for gain in gains:
        found = {name: [] for name in conv}
        sizes = []
        for seed in range(3):
            branch, x = residual_branch(gain, seed)
            J = jacobian(branch, x)
            sizes.append(torch.linalg.matrix_norm(J, 2).item())
            found["J, no skip"].append(condition_of_jacobian(J))
            found["I + J"].append(condition_of_jacobian(torch.eye(len(J)) + J))
        largest.append(spread(sizes))
        for name, values in found.items():
            conv[name].append(spread(values))
    for (name, values), style in zip(conv.items(), STYLE.values()):
        draw_spread(right, gains, values, name, style)
    right.set_xscale("log")
    right.set_yscale("log")
    right.set_xlabel("gamma of the branch's last BN")
    right.set_title("conv, BN, ReLU, conv, BN")
    figure.savefig(path)
    numbers["convolutional"] = {
        "seeds": 3,
        "gamma": gains,
        "s": largest,
        "condition": conv,
        "dim": len(J),
    }
    return numbers


def draw_skip_kinds(path: Path) -> Numbers:
    """Identity, orthogonal and other skips: one block, and a chain of blocks."""
    n, scale, seeds = 128, 0.5, 20
    figure, (axes, right) = new_figure(1, 2)
    ratios = [1.0, 1.5, 2.0, 3.0, 10.0, 100.0]
    by_ratio, identity = [], []
    for ratio in ratios:
        found = [
            condition_of_jacobian(skip_matrix(n, ratio, seed) + branch_jacobian(n, scale, seed))
            for seed in range(seeds)
        ]
        by_ratio.append(spread(found))
    identity = spread(
        [condition_of_jacobian(torch.eye(n) + branch_jacobian(n, scale, s)) for s in range(seeds)]
    )
    draw_spread(axes, ratios, by_ratio, "S + J", STYLE["two"])
    axes.axhline(identity["median"], color="black", label="I + J")
    axes.loglog()
    axes.set_xlabel("condition number of the skip S\n(1: orthogonal)")
    axes.set_ylabel("condition number")
    axes.set_title("one block")
    axes.legend()

    depths, chains = [1, 2, 4, 6, 8, 10], {}
    for name in ("no skip", "S with cond 3", "orthogonal", "identity"):
        chains[name] = [
            spread([chain_condition(name, n, depth, scale, seed) for seed in range(5)])
            for depth in depths
        ]
    for (name, values), style in zip(chains.items(), ("four", "two", "three", "one")):
        draw_spread(right, depths, values, name, STYLE[style])
    right.set_yscale("log")
    right.set_xlabel("blocks in a chain")
    right.set_title("the whole chain")
    right.legend()
    figure.savefig(path)
    return {
        "n": n,
        "s": scale,
        "seeds": seeds,
        "skip_condition": ratios,
        "condition": by_ratio,
        "identity": identity,
        "chain": {"seeds": 5, "depth": depths, "condition": chains},
    }


PICTURES = {
    "initialisation": draw_initialisation,
    "weight-scale": draw_weight_scale,
    "batch-norm-input": draw_batch_norm_input,
    "skip-scale": draw_skip_scale,
    "skip-kinds": draw_skip_kinds,
}


def new_figure(rows: int, columns: int) -> tuple[Figure, Any]:
    import matplotlib

    matplotlib.rcParams.update({"font.size": 15, "axes.titlesize": 15, "legend.fontsize": 13})
    width = 6.2 * columns if columns > 1 else 7.5
    figure = Figure(figsize=(width, 4.6 * rows), dpi=90, layout="constrained")
    axes = figure.subplots(rows, columns)
    for one in [axes] if rows * columns == 1 else axes:
        one.grid(alpha=0.3)
    return figure, axes


def histogram(axes: Any, spectrum: Tensor, law: lh.MarchenkoPastur, title: str) -> None:
    """Non-zero eigenvalues as a density of all of them, and the law's continuous part."""
    values, weights = (part.numpy() for part in spectrum)
    kept = values != 0
    bins, high = 40, law.support.high * 1.02
    width = high / bins
    axes.hist(
        values[kept],
        bins=bins,
        range=(0, high),
        weights=weights[kept] / weights.sum() / width,
        color="#c9c9c9",
        edgecolor="#8a8a8a",
        label="Gaussian W",
    )
    x = torch.linspace(law.support.low, law.support.high, 400)[1:-1]
    axes.plot(x, law.pdf(x), color="#c1440e", linewidth=3, linestyle="--", label="the law")
    axes.set_title(title)


def draw_spread(axes: Any, x: list[float], values: list[Any], label: str, style: Any) -> None:
    """The median over seeds, and from the least to the largest as a band."""
    axes.plot(x, [v["median"] for v in values], label=label, linewidth=2.5, markersize=8, **style)
    axes.fill_between(
        x,
        [v["least"] for v in values],
        [v["largest"] for v in values],
        color=style["color"],
        alpha=0.2,
        linewidth=0,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1], metavar="DIR")
    parser.add_argument("--only", choices=PICTURES, help="one picture; the numbers of others stay")
    args = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    images, file = args.out / "images", args.out / "figures" / "local-hessian.json"
    images.mkdir(parents=True, exist_ok=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    numbers = json.loads(file.read_text()) if args.only and file.exists() else {}
    for name in [args.only] if args.only else PICTURES:
        started = time.perf_counter()
        numbers[name] = rounded(PICTURES[name](images / f"local-hessian-{name}.png"))
        print(f"{name}: {time.perf_counter() - started:.1f} s")
    numbers["made with"] = {"torch": torch.__version__, "python": platform.python_version()}
    file.write_text(json.dumps(numbers, indent=1) + "\n")


def rounded(value: Any) -> Any:
    """Four digits: beyond them rounding differs between machines."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
