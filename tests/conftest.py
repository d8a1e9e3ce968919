"""What all tests share."""

import atexit
import os
import shutil
import tempfile

import torch

# The models are tiny: threads cost more than they save, most of all where cores are shared.
torch.set_num_threads(1)

# Kernels in Triton are interpreted where no GPU runs them; read when they are defined.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# A cache of their own, empty at first: what a person has built doesn't enter.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="ditc-cache-")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)
