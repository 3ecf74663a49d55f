"""Settings that must stand before anything is imported."""

import os

# The Triton kernel's logic is tested on every machine; triton reads this when it is imported.
os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
