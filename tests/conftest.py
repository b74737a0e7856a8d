"""What every test stands on: one thread a process, no network, no settings from the caller's environment."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
for _name in [name for name in os.environ if name.startswith("LORARETRIEVER_")]:
    del os.environ[_name]

try:
    import torch
except ModuleNotFoundError:
    pass
else:
    torch.set_num_threads(1)
