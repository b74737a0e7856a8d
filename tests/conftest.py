"""Make every test independent of the caller: one thread, no network, no inherited settings or ignored signals."""

from __future__ import annotations

import os

from tests.support.harness.signals import restore_signals

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
restore_signals()
for _name in [name for name in os.environ if name.startswith("LORARETRIEVER_")]:
    del os.environ[_name]

try:
    import torch
except ModuleNotFoundError:
    pass
else:
    torch.set_num_threads(1)
