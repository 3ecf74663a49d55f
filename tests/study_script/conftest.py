import pytest
import torch
from script_cases import TINY, made_line, study


@pytest.fixture(autouse=True)
def _one_thread_and_no_data():
    threads = torch.get_num_threads()
    study.images.cache_clear()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny(monkeypatch):
    """Presets small and scales, of runs that take some ten milliseconds."""
    small = study.Preset({**TINY, "patience": 0, "epochs": 2}, (100,), (0, 1))
    scales = study.Preset({**TINY, "epochs": 1}, (100, 101), (0, 1), init_scales=(1.0, 10.0))
    lrs = (1e30, 0.03, 0.01)  # the first diverges
    heatmap, depth = (lrs, {"init_scale": (1.0, 100.0)}), (lrs[1:], {"depth": (1, 2)})
    for name, value in {
        "PRESETS": {"small": small, "scales": scales}, "LRS": lrs, "RUNGS": (-1, 0),
        "GRIDS": {"heatmap": heatmap, "depth": depth}, "CHECK_SEEDS": (200, 201),
    }.items():  # fmt: skip
        monkeypatch.setattr(study, name, value)
    return study.PRESETS


@pytest.fixture
def call(tiny, monkeypatch, capsys, tmp_path):
    """Calls the script in an empty folder; its exit status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LHKERNELS_DATA", raising=False)

    def run(*arguments):
        try:
            status = study.main(["--device", "cpu", "--out", "here", *arguments])
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def trained(monkeypatch):
    """The configurations that are trained in this process, in their order."""
    configs, plain = [], study.train_one
    monkeypatch.setattr(study, "train_one", lambda c, d: configs.append(c) or plain(c, d))
    return configs


@pytest.fixture
def made_up(monkeypatch):
    """``made_up(figures)``: runs end at once, with ``figures(config)``; the list of those asked."""

    def use(figures):
        asked = []

        def train(self, what, due):
            asked.extend(due)
            lines = [made_line(config, figures(config)) for config in due]
            self.lines.update({line["key"]: line for line in lines})

        monkeypatch.setattr(study.Study, "train", train)
        return asked

    return use
