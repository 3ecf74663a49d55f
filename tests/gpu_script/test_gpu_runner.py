"""Parts end in time, keep what they have, and don't stop each other."""

import json
import sys
import tarfile

import pytest

from gpu_parts import runner
from gpu_parts.runner import Failed, Part, Unavailable


def keep(context):
    context.data["kept"] = 1


def fail(context):
    keep(context)
    raise Failed("no good")


def crash(context):
    keep(context)
    raise KeyError("oops")


def lack(context):
    raise Unavailable("no such tool")


def sleep(context):
    keep(context)
    context.execute(["sleep", "60"])


def run(tmp_path, *functions, **options):
    parts = [Part(f.__name__, f"does {f.__name__}", 30, f) for f in functions]
    return runner.run_all(parts, tmp_path, **options)


def test_a_part_that_fails_does_not_stop_the_others(tmp_path):
    seen = []
    records = run(tmp_path, fail, crash, lack, keep, after=seen.append)
    assert [r["status"] for r in records] == ["failed", "failed", "unavailable", "ok"]
    assert [r["message"] for r in records] == ["no good", "KeyError: 'oops'", "no such tool", ""]
    assert (
        records == seen == [json.loads((tmp_path / f"{r['part']}.json").read_text()) for r in seen]
    )
    assert records[1]["data"] == {"kept": 1}
    assert "in crash" in (tmp_path / "crash.log").read_text()  # its traceback


def test_time_limits(tmp_path, time_is_up):
    time_is_up()
    first, second = run(tmp_path, sleep, keep, limit=0.5)
    assert (first["status"], first["data"], second["status"]) == ("out of time", {"kept": 1}, "ok")
    assert "`sleep 60`; --limit" in first["message"]
    first, second = run(tmp_path, sleep, sleep, total=0.5)
    assert (first["status"], second["status"]) == ("out of time", "out of time")
    assert "no time is left" in second["message"]


def test_an_interruption_keeps_what_there_is(tmp_path):
    def interrupt(context):
        keep(context)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, interrupt, keep)
    record = json.loads((tmp_path / "interrupt.json").read_text())
    assert (record["status"], record["data"]) == ("failed", {"kept": 1})
    assert not (tmp_path / "keep.json").exists()


def test_commands(context):
    assert context.python_json("-c", "print('{\"a\": 1}')") == {"a": 1}
    with pytest.raises(Failed, match="exited with 1: ValueError: no"):
        context.python("-c", "raise ValueError('no')")
    with pytest.raises(Failed, match="no JSON came out, but 'x"):
        context.python_json("-c", "print('x')")
    with pytest.raises(Unavailable, match="no-such-program"):
        context.execute(["no-such-program"])
    assert context.commands[0] == "python -c print('{\"a\": 1}')"
    assert sys.executable not in "".join(context.commands)


def test_an_archive_has_results_alone(tmp_path):
    out = tmp_path / "out"
    for name in ("tests.json", "study/digits/summary.md", "scratch/large.bin"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(name)
    target = out / "results.tar.gz"
    for _ in range(2):  # the second one does not hold the first
        runner.archive(out, target)
    with tarfile.open(target) as tar:
        assert tar.getnames() == ["study/digits/summary.md", "tests.json"]
