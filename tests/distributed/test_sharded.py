"""Parameters cut over ranks (FSDP2, HSDP, tensor parallel): the numbers of one process.

Every world is started once and does all its cases, in tests/distributed/ranks.py.
"""

from __future__ import annotations

from functools import cache

import pytest
import ranks


@pytest.fixture(scope="module")
def failures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("worlds")
    return cache(lambda world: ranks.run(world, folder))


@pytest.mark.parametrize(
    ("world", "case"),
    [(world, case.__name__) for world, cases in ranks.CASES.items() for case in cases],
)
def test_ranks_do_what_one_process_does(world, case, failures):
    for before in ranks.CASES:  # in order: a later world loads what the first one saved
        if before <= world:
            failed = failures(before)
    assert not failed.get(case), "\n".join(failed[case].values())
    assert not failed or case not in skipped(world, failed), f"not run: {list(failed)} failed"


def skipped(world, failed):
    names = [case.__name__ for case in ranks.CASES[world]]
    return names[min(map(names.index, failed)) + 1 :]
