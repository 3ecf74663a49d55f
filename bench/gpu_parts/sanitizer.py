"""compute-sanitizer: the command for each of its tools, and what is read from its output."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpu_parts import ncu
from gpu_parts.dry import interpreted
from gpu_parts.runner import Context, Failed, Unavailable

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
OURS = {"step_kernel", "refresh_kernel", "sq_norm_kernel"}
REFUSALS = {
    "Device not supported": "compute-sanitizer does not support this device or runtime "
    "(Device not supported)",
    "Unable to find injection library": "compute-sanitizer's installation is incomplete",
    "Error: Failed to initialize": "compute-sanitizer cannot start here",
    "terminated before first instrumented API call": "compute-sanitizer saw no CUDA call",
}
SUMMARY = {
    "racecheck": re.compile(r"RACECHECK SUMMARY: (\d+) hazards? displayed \((\d+) errors?, (\d+)"),
}
ERRORS = re.compile(r"ERROR SUMMARY: (\d+) errors?")
FINDING = re.compile(
    r"^========= (?P<kind>(?:Invalid|Misaligned|Uninitialized|Barrier error|"
    r"(?:Error|Warning): (?:Race|Potential)|Address|Divergent)[^.\n]*)"
)
PLACE = re.compile(r"^=========\s+at\s+(.+)")


def command(program: str, tool: str, log: Path, target: Sequence[str]) -> list[str]:
    """Errors of CUDA's API are left out: torch probes for features, and handles refusals."""
    if tool not in TOOLS:
        raise ValueError(f"tool={tool!r} is none of {', '.join(TOOLS)}")
    extra = ["--report-api-errors", "no"] if tool == "memcheck" else []
    return [
        program, "--tool", tool, *extra, "--print-limit", "10000",
        "--target-processes", "application-only", "--log-file", str(log), *target,
    ]  # fmt: skip


def part(context: Context) -> None:
    """compute-sanitizer's tools on small steps of every kind."""
    results = context.data["tools"] = {}
    driver = context.data["driver"] = {}
    program = None if context.dry_run else ncu.find("compute-sanitizer")
    # Once without it, so that all kernels are compiled and the numbers known to be right.
    context.driver("small_steps", driver, env=None if program else interpreted())
    for tool in TOOLS if program else ():
        with context.attempt(tool):
            found = results[tool] = examine(context, str(program), tool)
            if found["in_ours"] or found["unattributed"]:
                raise Failed(f"{found['errors']} errors: {found['kinds']}")
        if context.problems and isinstance(context.problems[-1], Unavailable):
            return  # what is refused to one is refused to all
        if context.left <= 0:
            return


def examine(context: Context, program: str, tool: str) -> dict[str, Any]:
    """What one tool finds."""
    log, target = context.path(f"{tool}.txt"), context.path(f"{tool}.json")
    log.unlink(missing_ok=True)
    driver = [sys.executable, "-m", "gpu_parts.drivers.small_steps", "--json", str(target)]
    # Without torch's pool every tensor has an allocation of its own, with bounds to check.
    env = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    # One slow tool must leave time for the next.
    limit = max(60.0, 0.5 * context.left)
    status = context.execute(command(program, tool, log, driver), env=env, limit=limit)
    check_refusal(context.printed())
    found = parse(tool, log.read_text(errors="replace") if log.exists() else "")
    if status and not found["errors"]:
        raise Failed(f"the driver exited with {status}: {context.last_line()}")
    return found


def check_refusal(text: str) -> None:
    """Raise Unavailable if compute-sanitizer's own lines say that it can't work here."""
    lines = "\n".join(line for line in text.splitlines() if line.startswith("========="))
    for sign, message in REFUSALS.items():
        if sign in lines:
            raise Unavailable(message)


def parse(tool: str, text: str) -> dict[str, Any]:
    """Errors by kind and kernel, and how many of them are in this package's kernels.

    Raises:
        Unavailable: the tool refuses this device.
        Failed: the output has no summary, so that it proves nothing.
    """
    check_refusal(text)
    found = SUMMARY[tool].search(text) if tool in SUMMARY else None
    if found:
        errors = int(found[2])
    else:
        counts = [int(n) for n in ERRORS.findall(text)]
        if not counts:
            last = [line for line in text.splitlines() if line.strip()][-1:]
            raise Failed(f"{tool}'s output has no summary; it ends with {last}")
        errors = max(counts)
    kinds: Counter[str] = Counter()
    kind: str | None = None
    for line in text.splitlines():
        head, place = FINDING.match(line), PLACE.match(line)
        if head:
            kind = head["kind"].strip()
            if " at " in kind:  # racecheck names the kernel in the same line
                kind, where = kind.split(" at ", 1)
                kinds[f"{kind} in {_kernel(where)}"] += 1
                kind = None
        elif kind and place:
            kinds[f"{kind} in {_kernel(place[1])}"] += 1
            kind = None
    displayed = sum(kinds.values())
    ours = sum(
        count
        for name, count in kinds.items()
        if name.rsplit(" in ", 1)[-1] in OURS and not name.startswith("Warning")
    )
    return {
        "tool": tool,
        "errors": errors,
        "in_ours": ours,
        "unattributed": max(errors - displayed, 0),
        "kinds": dict(kinds),
    }


def _kernel(place: str) -> str:
    """``step_kernel+0x1230 in step.py:12`` -> ``step_kernel``; templates and arguments go too."""
    place = re.sub(r"^0x[0-9a-f]+ in ", "", place.strip())  # as older versions write it
    name = re.split(r"\+0x|\(|<|\s+in\s", place, maxsplit=1)[0]
    return name.split()[-1] if name.split() else place.strip()
