"""What all tests share."""

import torch

# The models are tiny: threads cost more than they save, most of all where cores are shared.
torch.set_num_threads(1)
