"""Run parts one after the other: each with a time limit, a JSON file, and what it printed.

A part is a function of a :class:`Context`. It fills ``context.data`` as it goes, so that a part
which fails or runs out of time leaves what it has measured.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "bench"
GRACE = 5  # seconds that a process has to end by itself, once interrupted and once terminated


class Failed(Exception):
    """A part's result is bad; the message says what and, where there is one, the remedy."""

    status = "failed"


class Unavailable(Failed):
    """A tool or a file that the part needs is not here, or refuses."""

    status = "unavailable"


class OutOfTime(Failed):
    """The part's time limit has passed."""

    status = "out of time"


@dataclass(frozen=True)
class Part:
    """One part: what it measures in a line, its time limit in seconds, and the function."""

    name: str
    title: str
    limit: float
    run: Callable[[Context], None]


@dataclass
class Context:
    """What a part is given, and where it leaves its results."""

    part: Part
    out: Path
    deadline: float
    dry_run: bool = False
    data_folder: Path | None = None
    data: dict[str, Any] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)
    problems: list[Failed] = field(default_factory=list)
    _logged: int = 0  # bytes of the log before the last command

    @property
    def device(self) -> str:
        return "cpu" if self.dry_run else "cuda"

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    @property
    def log(self) -> Path:
        return self.out / f"{self.part.name}.log"

    def path(self, name: str) -> Path:
        """A scratch file, in a folder that is not part of the results."""
        folder = self.out / "scratch"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{self.part.name}-{name}"

    def execute(
        self,
        command: Sequence[str | Path],
        *,
        limit: float | None = None,
        env: dict[str, str] | None = None,
        stdout: Path | None = None,
    ) -> int:
        """Run a command from the root; its output goes to the log, or stdout to a file.

        Returns:
            The exit status.

        Raises:
            OutOfTime: it did not end in ``limit`` seconds (default: the part's), and was killed.
            Unavailable: there is no such program.
        """
        args = [str(word) for word in command]
        shown = " ".join(["python" if word == sys.executable else word for word in args])
        shown = shown.replace(f"{self.out}{os.sep}", "").replace(f"{ROOT}{os.sep}", "")
        self.commands.append(shown)
        seconds = min(self.left, limit or self.left)
        if seconds <= 0:
            raise OutOfTime(f"no time is left for `{shown}`")
        path = [str(BENCH), str(ROOT), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            "PYTHONUNBUFFERED": "1",
            "TRITON_INTERPRET": "1" if self.dry_run else "0",
            **(env or {}),
        }
        with contextlib.ExitStack() as files:
            log = files.enter_context(self.log.open("a", encoding="utf-8"))
            log.write(f"$ {shown}\n")
            log.flush()
            self._logged = log.tell()
            sink = files.enter_context(stdout.open("w", encoding="utf-8")) if stdout else log
            try:
                process = subprocess.Popen(
                    args,
                    cwd=ROOT,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=sink,
                    stderr=log,
                    preexec_fn=os.setpgrp,  # so that its children can be ended with it
                )
            except OSError as error:
                raise Unavailable(f"{args[0]} does not start: {error}") from error
            try:
                return process.wait(seconds)
            except subprocess.TimeoutExpired as error:
                raise OutOfTime(
                    f"stopped after {seconds:.0f} s, its time limit: `{shown}`; "
                    "--limit SECONDS gives each part more"
                ) from error
            finally:
                end(process)

    def python(self, *args: str | Path, **options: Any) -> None:
        """Run ``python ARGS``.

        Raises:
            Failed: its exit status is not 0; the message ends with its last line.
        """
        status = self.execute([sys.executable, *args], **options)
        if status:
            words = " ".join(map(str, args))
            raise Failed(f"`python {words}` exited with {status}: {self.last_line()}")

    def python_json(self, *args: str | Path, **options: Any) -> Any:
        """What ``python ARGS`` prints as JSON on stdout."""
        target = self.path(f"{len(self.commands)}.json")
        self.python(*args, stdout=target, **options)
        return _load(target)

    def driver(self, name: str, found: dict[str, Any], **options: Any) -> None:
        """Add the results of ``gpu_parts.drivers.NAME`` to ``found``, partial ones if it fails."""
        target = self.path(f"{name}.json")
        target.unlink(missing_ok=True)
        dry = ["--dry-run"] if self.dry_run else []
        try:
            self.python("-m", f"gpu_parts.drivers.{name}", "--json", target, *dry, **options)
        except BaseException:
            with contextlib.suppress(Failed):
                found.update(_load(target))
            raise
        found.update(_load(target))

    def printed(self) -> str:
        """What the last command has written to the log."""
        if not self.log.exists():
            return ""
        return self.log.read_bytes()[self._logged :].decode(errors="replace")

    def last_line(self) -> str:
        """Of the log; for a message."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return lines[-1][:300] if lines else "it says nothing"

    @contextlib.contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Let the rest of the part go on after a failure; :meth:`conclude` tells it."""
        try:
            yield
        except Failed as error:
            self.problems.append(type(error)(f"{what}: {error}"))

    def conclude(self) -> None:
        """Fail with all that went wrong in the part's attempts, if anything did."""
        kinds = {type(problem) for problem in self.problems}
        if kinds:
            kind = OutOfTime if OutOfTime in kinds else kinds.pop() if len(kinds) == 1 else Failed
            raise kind("; ".join(map(str, self.problems)))


def _load(path: Path) -> Any:
    text = path.read_text() if path.exists() else ""
    try:
        return json.loads(text)
    except ValueError as error:
        raise Failed(f"no JSON came out, but {text[:80]!r}") from error


def end(process: subprocess.Popen[Any]) -> None:
    """End a process and its children, which are in a group of their own.

    One that still runs is interrupted first, so that it can save what it has (pytest its report).
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None or number == signal.SIGKILL:  # children may outlive it
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)


def run_part(part: Part, out: Path, *, limit: float, **options: Any) -> dict[str, Any]:
    """Run one part and write ``PART.json``; the record says how it went, and is returned."""
    context = Context(part, out, deadline=time.monotonic() + limit, **options)
    context.log.unlink(missing_ok=True)
    record: dict[str, Any] = {"part": part.name, "title": part.title, "dry_run": context.dry_run}
    start = time.monotonic()
    stop: BaseException | None = None
    try:
        part.run(context)
        context.conclude()
        record |= {"status": "ok", "message": ""}
    except Failed as error:
        record |= {"status": error.status, "message": str(error)}
    except Exception as error:  # one part's mistake must not cost the others their results
        with context.log.open("a") as log:
            traceback.print_exc(file=log)
        record |= {"status": "failed", "message": f"{type(error).__name__}: {error}"}
    except BaseException as error:  # interrupted or terminated: keep what there is, then stop
        stop = error
        record |= {"status": "failed", "message": f"interrupted ({type(error).__name__})"}
    record |= {
        "seconds": round(time.monotonic() - start, 1),
        "limit": round(limit),
        "commands": context.commands,
        "data": context.data,
    }
    write_json(out / f"{part.name}.json", record)
    if stop is not None:
        raise stop
    return record


def run_all(
    parts: Sequence[Part], out: Path, *, limit: float | None = None, total: float | None = None,
    after: Callable[[dict[str, Any]], None] = lambda record: None, **options: Any,
) -> list[dict[str, Any]]:  # fmt: skip
    """Run parts in order; ``after`` is called with each one's record.

    ``limit`` replaces every part's time limit; ``total`` limits all of them together, and the parts
    for which nothing is left are recorded as out of time.
    """
    end = time.monotonic() + (total if total is not None else float("inf"))
    records = []
    for part in parts:
        seconds = min(limit or part.limit, end - time.monotonic())
        print(f"[{part.name}] {part.title}", flush=True)
        record = run_part(part, out, limit=max(seconds, 0.0), **options)
        records.append(record)
        print(f"[{part.name}] {record['status']}, {record['seconds']:.0f} s", flush=True)
        if record["status"] != "ok":
            print(f"[{part.name}] {record['message']}", flush=True)
        after(record)
    return records


def write_json(path: Path, value: Any) -> None:
    """Write a file whole or not at all."""
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(value, indent=2, default=str) + "\n")
    draft.replace(path)


def archive(out: Path, target: Path) -> None:
    """The results, without scratch files, as one ``.tar.gz``."""
    draft = target.with_name(target.name + ".tmp")
    with tarfile.open(draft, "w:gz") as tar:
        for path in sorted(out.rglob("*")):
            name = path.relative_to(out)
            if path.is_file() and name.parts[0] != "scratch" and path not in (draft, target):
                tar.add(path, arcname=str(name))
    draft.replace(target)
