"""``summary.md`` from the JSON files of all parts, predictions beside the figures."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gpu_parts import predictions
from gpu_parts.predictions import shown, verdict

SHOWN = ("device", "date", "torch", "torch's CUDA", "triton", "nvcc", "cores", "C++ extension")


def load(path: Path) -> dict[str, Any]:
    """A JSON object; {} where a file is damaged or holds something else."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write(out: Path) -> Path:
    """Write ``out/summary.md``; its path."""
    from gpu_parts.registry import PARTS

    records = [load(out / f"{name}.json") for name in PARTS]
    text = to_markdown(load(out / "environment.json"), [r for r in records if r.get("part")])
    path = out / "summary.md"
    path.write_text(text)
    return path


def to_markdown(environment: dict[str, Any], records: Sequence[dict[str, Any]]) -> str:
    """The summary: environment, how each part went, and a section for each part's figures."""
    lines = [f"# {environment.get('device', 'unknown device')}", ""]
    if environment.get("dry run"):
        lines += ["**Dry run on a CPU: every figure below is meaningless.**", ""]
    lines += [f"- {key}: {environment[key]}" for key in SHOWN if environment.get(key) is not None]
    smi = environment.get("nvidia-smi")
    if isinstance(smi, dict):
        lines += [f"- {key}: {smi[key]}" for key in smi if key != "name"]
    elif smi:
        lines.append(f"- nvidia-smi: {smi}")
    lines += ["", f"Predictions are for an {predictions.GPU}.", ""]
    rows = [[r["part"], r["status"], f"{r['seconds']:.0f}", r["message"]] for r in records]
    lines += table(["part", "status", "s", "message"], rows)
    for record in records:
        section = SECTIONS.get(record["part"], study)
        try:
            found = section(record["data"]) if record.get("data") else []
        except (KeyError, TypeError, ValueError, AttributeError) as error:  # partial results
            found = [f"Not to be shown as a table ({type(error).__name__}: {error}); see the JSON."]
        if found:
            lines += ["", f"## {record['part']}: {record['title']}", "", *found]
    return "\n".join(lines) + "\n"


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """A Markdown table; numbers with the digits that mean something."""
    cells = [[_cell(value) for value in row] for row in rows]
    lines = [list(heads), ["---"] * len(heads), *cells]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value).replace("|", "\\|").replace("\n", " ")


def tests(data: dict[str, Any]) -> list[str]:
    keys = ("tests", "passed", "skipped", "failed")
    lines = table(["selection", *keys], [[name, *(d[k] for k in keys)] for name, d in data.items()])
    failures = [name for d in data.values() for name in d["failures"]]
    return lines + (["", "Failed: " + ", ".join(f"`{name}`" for name in failures)] * bool(failures))


def asm(data: dict[str, Any]) -> list[str]:
    keys = ("kernel", "param", "grad", "momentum", "stochastic", "registers", "spill_bytes")
    keys += ("resident_warps",)
    heads = ["kernel", "weight", "gradient", "momentum", "stochastic rounding", "registers",
             "spilled bytes", "resident warps", "in flight, KiB", "loads of 128 bits, narrower",
             "stores of 128 bits, narrower"]  # fmt: skip
    rows = [
        [
            *(r[k] for k in keys),
            r["bytes_in_flight"] / 1024,
            widths(r["loads"]),
            widths(r["stores"]),
        ]
        for r in data["kernels"]
    ]
    return [f"sm_{data['arch']}, accesses of a thread in a full tile", "", *table(heads, rows)]


def widths(accesses: dict[str, int]) -> str:
    """128-bit accesses, and all others."""
    wide = accesses.get("128", 0)
    return f"{wide}, {sum(accesses.values()) - wide}"


def step(data: dict[str, Any]) -> list[str]:
    heads = ["model", "optimizer", "dtype", "ms", "ratio", "GB/s", "/copy", "launches",
             "predicted ms", "measured is"]  # fmt: skip
    rows, missing = [], {}
    for source in ("step", "peers"):
        found = data.get(source) or {}
        missing |= found.get("missing", {})
        for r in found.get("results", []):
            ours = r["contender"] == "lhkernels"
            if source == "peers" and r["contender"] in ("lhkernels", "torch fused"):
                continue  # there for the ratio; the first table has them
            expected = predictions.STEP_MS.get(r["model"]) if ours else None
            rows.append(
                [
                    r["model"],
                    r["contender"],
                    r["dtype"],
                    r["ms"],
                    r["ratio"],
                    r["gb_per_s"],
                    r["of_copy"],
                    r.get("launches"),
                    shown(expected),
                    verdict(r["ms"], expected) if expected else "",
                ]
            )
    lines = [
        "Medians, host included; ratio to torch's fused SGD, within a round. Predicted times are "
        "the device's alone (part `launches` has them).", "", *table(heads, rows),
    ]  # fmt: skip
    return lines + [f"\nMissing: {name} ({why})" for name, why in missing.items()]


def launches(data: dict[str, Any]) -> list[str]:
    heads = ["model", "optimizer", "tensors", "kernels", "predicted", "copies",
             "copies, new gradients", "device ms", "predicted ms", "measured is"]  # fmt: skip
    rows = []
    for r in data["launches"]:
        count = predictions.LAUNCHES.get((r["optimizer"], r["model"]))
        time = predictions.STEP_MS.get(r["model"]) if r["optimizer"] == "lhkernels" else None
        rows.append(
            [
                r["model"],
                r["optimizer"],
                r["tensors"],
                r["kernels"],
                shown(count),
                r["copies"],
                r["copies_new_gradients"],
                r["device_ms"],
                shown(time),
                verdict(r["device_ms"], time) if time else "",
            ]
        )
    return table(heads, rows)


def dram(data: dict[str, Any]) -> list[str]:
    heads = ["step", "bytes/element", "read", "written", "predicted", "measured is", "kernels",
             "device ms", "TB/s"]  # fmt: skip
    rows = []
    for case, d in data["cases"].items():
        if d.get("bytes") is None:
            continue
        expected = predictions.BYTES[case]
        rows.append(
            [
                case,
                f"{d['bytes']:.2f}",
                f"{d['bytes_read']:.2f}",
                f"{d['bytes_written']:.2f}",
                expected,
                verdict(d["bytes"], expected),
                d["kernels"],
                d["device_ms"],
                d["tb_per_s"],
            ]
        )
    return table(heads, rows) if rows else []


def sanitizer(data: dict[str, Any]) -> list[str]:
    rows = [
        [tool, d["errors"], d["in_ours"], "; ".join(f"{k} ({n})" for k, n in d["kinds"].items())]
        for tool, d in data["tools"].items()
    ]
    return table(["tool", "errors", "in our kernels", "what"], rows) if rows else []


def share(data: dict[str, Any]) -> list[str]:
    heads = ["model", "optimizer", "fwd + bwd, ms", "step, ms", "share", "predicted",
             "measured is", "iteration, ms"]  # fmt: skip
    rows = []
    for r in data["share"]:
        expected = predictions.SHARE.get(r["optimizer"]) if "gpt2" in r["model"] else None
        percent = f"{100 * expected[0]:g} - {100 * expected[1]:g} %" if expected else ""
        judged = verdict(r["share"], expected) if expected else ""
        rows.append(
            [
                r["model"],
                r["optimizer"],
                r["fwd_bwd_ms"],
                r["step_ms"],
                f"{100 * r['share']:.1f} %",
                percent,
                judged,
                r["iteration_ms"],
            ]
        )
    return table(heads, rows)


def graph(data: dict[str, Any]) -> list[str]:
    heads = {
        "captured": "captured", "replays": "replays", "same_bits": "same bits as eager steps",
        "largest_difference": "largest relative difference", "replay_ms": "replay, ms",
        "eager_ms": "eager step, ms",
    }  # fmt: skip
    return table(list(heads.values()), [[data["graph"].get(key) for key in heads]])


def compiled(data: dict[str, Any]) -> list[str]:
    heads = {
        "optimizer": "optimizer", "lr": "lr is a", "works": "works",
        "frames_compiled": "frames compiled", "recompiles": "of them for another lr",
        "graph_breaks": "graph breaks", "difference": "relative difference from eager",
        "compiled_ms": "compiled, ms", "eager_ms": "eager, ms", "error": "error",
    }  # fmt: skip
    return table(list(heads.values()), [[r.get(key) for key in heads] for r in data["compile"]])


def hvp(data: dict[str, Any]) -> list[str]:
    heads = ["case", "way", "form", "columns", "fresh, ms", "speed-up", "again, ms", "speed-up",
             "peak, MiB", "relative error"]  # fmt: skip
    rows = []
    for r in data["hvp"]["results"]:
        peak = r["peak_bytes"]
        row = [r["case"], r["contender"], r["form"], r["columns"], r["ms"], r["speedup"]]
        row += [r["ms_product"], r["speedup_product"], peak and peak / 2**20, r["error"]]
        rows.append(row)
    note = "Speed-ups are against the best peer: fresh with an operator's one-time part, again "
    return [f"{note}without. Nothing stands where memory did not suffice.", "", *table(heads, rows)]


def scaling(data: dict[str, Any]) -> list[str]:
    found = data["scaling"]
    rows = [[part, name, s] for part, by in found["slopes"].items() for name, s in by.items()]
    return table(["what", "optimizer or way", "slope of the last points, log-log"], rows)


def study(data: dict[str, Any]) -> list[str]:
    if "data" not in data:
        return []
    note = f" ({data['note']})" if data.get("note") else ""
    where = f"[{data['out']}]({data['out']})"
    found = f"Tables and plots: {where}." if data.get("summary") else f"Runs so far: {where}."
    return [f"Data: {data['data']}{note}. {found}"]


SECTIONS: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "tests": tests, "asm": asm, "step": step, "launches": launches, "dram": dram,
    "sanitizer": sanitizer, "share": share, "graph": graph, "compile": compiled, "hvp": hvp,
    "scaling": scaling,
}  # fmt: skip
