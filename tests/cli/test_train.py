"""``lhkernels train`` as its users meet it: output, exit status, errors, interruption."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lhkernels.cli import build_parser, main
from lhkernels.training.config import OPTIONS
from lhkernels.training.errors import option_name
from lhkernels.training.loop import Run

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

QUICK = "--limit 160 --batch-size 32 --width 0.25 --epochs 2"


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "60")
    # Networks this small gain nothing from a second thread, and lose much on a busy machine.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(arguments):
    return main(["train", *arguments.split()])


@pytest.fixture
def refused(capsys):
    """Gives ``train`` arguments that it refuses with status 2 and a line, which is returned."""

    def refuse(arguments):
        capsys.readouterr()
        assert run(arguments) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        return err.removeprefix("lhkernels train: error: ").rstrip()

    return refuse


def records(folder):
    return [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]


def report(folder):
    return json.loads(Path(folder, "report.json").read_text())


def test_output_is_plain_lines_that_fit(capsys):
    assert run(f"{QUICK} --seeds 0,1") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert not {"\x1b", "\r", "…"} & set(out)
    assert max(map(len, out.splitlines())) <= 60
    rows = [line for line in out.splitlines() if line.startswith(("  1/2", "  2/2"))]
    assert len(rows) == 4  # a line per epoch and seed
    first, second, *_ = records("runs/digits-vgg-small")
    assert f"{first['train_loss']:.4f}" in rows[0]
    assert f"{100 * second['test_error']:.2f}%" in rows[0]
    assert "mean and standard deviation of 2 seeds" in out
    assert out.rstrip().endswith("runs/digits-vgg-small")


def test_json_goes_to_stdout_and_the_rest_to_stderr(capsys):
    assert run(f"{QUICK} --json --out here") == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == report("here")
    assert "2/2" in err


def test_no_progress_leaves_the_table(capsys):
    assert run(f"{QUICK} --no-progress") == 0
    out = capsys.readouterr().out
    assert "1/2" not in out
    assert "sa-sgd" in out


def test_options_reach_the_configuration():
    options = "--seeds 3 --lr sgd=0.2,sa-sgd=0.002 --momentum 0.8 --weight-decay 0.001 --flip 0.1"
    options += " --rotate 3 --patience 4 --lr-factor 0.25 --init-scale 2 --scale-reference initial"
    assert run(f"{QUICK} {options} --out here --no-progress --device cpu") == 0
    expected = {
        "seeds": [3], "lr": {"sgd": 0.2, "sa-sgd": 0.002}, "momentum": 0.8, "weight_decay": 0.001,
        "flip": 0.1, "rotate": 3, "patience": 4, "lr_factor": 0.25, "init_scale": 2, "limit": 160,
        "scale_reference": "initial", "width": 0.25, "epochs": 2, "batch_size": 32, "amp": False,
        "device": "cpu",
    }  # fmt: skip
    assert report("here")["config"].items() >= expected.items()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--epochs 0", "--epochs 0: must be a whole number, at least 1"),
        ("--lr -1", "--lr -1.0: must be a finite number, at least 0"),
        ("--optimizers sgd,adam", "--optimizers adam: choose from sgd, sa-sgd, lars"),
        ("--lr sgd=0.1,sgd=0.2", "--lr sgd=0.1,sgd=0.2: name each optimizer only once"),
        ("--init-scale 1,x", "--init-scale 1,x: give numbers: 0.1,1,10"),
        ("--data mnist", "--data mnist: choose from digits"),
        ("--resume", "--resume: there is no run in --out runs"),
        ("--data cifar10 --data-dir nowhere", "cifar10: not found in nowhere"),
        ("--data fashion-mnist --data-dir nowhere", "Fashion-MNIST: not found in nowhere"),
        (f"--out {'x' * 300}", f"--out {'x' * 300}: can not be written (File name too long)"),
        (f"--resume --out {'x' * 300}", "--resume: there is no run in --out xxx"),
    ],
)
def test_bad_option_ends_with_status_2_and_writes_nothing(refused, options, message):
    assert refused(options).startswith(message)
    assert list(Path().iterdir()) == []


def test_unparsable_number_names_the_option(capsys):
    with pytest.raises(SystemExit) as caught:
        run("--epochs many")
    assert caught.value.code == 2
    assert "argument --epochs: invalid int value: 'many'" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["matplotlib", "sklearn"])
def test_missing_extra_is_one_line_that_names_the_remedy(refused, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    remedy = "pip install lhkernels[demo]"
    assert refused(QUICK) == f"the package {package} is missing: {remedy}"
    assert list(Path().iterdir()) == []


def test_help_lists_options_and_defaults_without_the_extras():
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('rich', 'matplotlib', 'sklearn')));"
        "from lhkernels.cli import main; main(['train', '--help'])"
    )
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert "cifar10        vgg13" in done.stdout
    assert all(option_name(name) in done.stdout for name in OPTIONS)


def test_every_option_has_help():
    commands = build_parser()._subparsers._group_actions[0].choices
    actions = commands["train"]._actions
    assert len(actions) > len(OPTIONS)
    assert all(action.help for action in actions)


def interrupt_in_epoch(monkeypatch, seed, name, epoch):
    plain = Run._train

    def train_or_stop(run, number, on_batch):
        if (run.seed, run.name, number) == (seed, name, epoch):
            raise KeyboardInterrupt
        return plain(run, number, on_batch)

    monkeypatch.setattr(Run, "_train", train_or_stop)


def test_interruption_saves_says_how_to_go_on_and_can(capsys, monkeypatch, refused):
    with monkeypatch.context() as patch:
        interrupt_in_epoch(patch, 0, "sa-sgd", 2)
        assert main(["train", *QUICK.split(), "--out", "my run"]) == 130
    out, err = capsys.readouterr()
    assert "python -m lhkernels train --resume --out 'my run'" in err
    assert "sa-sgd" in out  # the table of what there is
    assert len(records("my run")) == 3
    assert Path("my run/curves.png").exists()
    assert [run["status"] for run in report("my run")["runs"]] == ["ok", "interrupted"]

    # The options come from the run itself; one that differs is refused.
    Path("my run").rename("here")
    assert "--lr sgd=7,sa-sgd=7: the run to resume has" in refused("--resume --out here --lr 7")
    assert run("--resume --out here --epochs 3") == 0
    assert len(records("here")) == 6


def test_interruption_while_loading(capsys, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("lhkernels.training.trainer.load", stop)
    assert run(QUICK) == 130
    assert "nothing was written" in capsys.readouterr().err
    assert list(Path().iterdir()) == []


def test_several_scales_are_compared_at_their_last_epoch(capsys):
    assert run(f"{QUICK} --init-scale 0.1,10 --seeds 0,1 --out here") == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 60
    assert [line for line in out.splitlines() if line.startswith("initial weights")] == [
        f"initial weights x {scale}, seed {seed}" for scale in ("0.1", "10") for seed in (0, 1)
    ]
    assert "  1/2" not in out
    assert out.count("  2/2") == 4
    rows = [line.split()[:3] for line in out.splitlines() if "sa-sgd" in line]
    assert rows[-2:] == [["0.1", "sa-sgd", "0.03"], ["10", "sa-sgd", "0.03"]]
    assert run("--resume --out here --init-scale 0.1,10 --no-progress") == 0


def test_a_folder_that_holds_a_file_or_a_run_is_refused(refused):
    Path("file").touch()
    message = refused(f"{QUICK} --out file")
    assert message.startswith("--out file: can not be written (File exists)")
    assert run(f"{QUICK} --no-progress --out here") == 0
    assert "holds a run already" in refused(f"{QUICK} --no-progress --out here")
    assert run(f"{QUICK} --no-progress --out here --overwrite") == 0
    changed = report("here")
    changed["config"]["data"] = "mnist"
    for content in (json.dumps(changed), "{", "{}"):
        Path("here/report.json").write_text(content)
        message = refused("--resume --out here --epochs 3")
        assert message.startswith("here/report.json: was changed, or written by")


def test_an_optimizer_that_can_not_start_is_one_line_and_can_be_mended(capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("LHKERNELS_FUSED_BACKEND", "bad")
        assert run(f"{QUICK} --no-progress --out here") == 2
    err = capsys.readouterr().err
    assert err.startswith(
        "lhkernels train: error: sa-sgd (seed 0) can not train: LHKERNELS_FUSED_BACKEND='bad' is "
    )
    assert err.count("\n") == 1
    assert len(records("here")) == 1  # sgd's
    assert run("--resume --out here --no-progress") == 0
    assert len(records("here")) == 4


def test_divergence_of_all_is_a_failure_of_one_is_not(capsys):
    # Each step at this rate multiplies the weights by a few thousand, until they overflow.
    assert run(f"{QUICK} --epochs 4 --lr sgd=1e6 --out one") == 0
    out = capsys.readouterr().out
    assert "sgd diverged in epoch" in out
    assert max(map(len, out.splitlines())) <= 60
    assert run(f"{QUICK} --epochs 4 --lr 1e6 --optimizers sgd --out all") == 1
