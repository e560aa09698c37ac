"""A training job's load: optimiser steps on an EfficientNet-lite0, as the demo preset's fine-tune, on random images."""

from __future__ import annotations

import os
import sys

import timm
import torch

os.nice(int(sys.argv[1]))
torch.set_num_threads(int(sys.argv[2]))
net = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=1).train()
optimiser = torch.optim.AdamW(net.parameters(), lr=1e-4)
images, labels = torch.randn(16, 3, 224, 224), torch.randint(0, 2, (16, 1)).float()
print("ready", flush=True)
while True:
    optimiser.zero_grad()
    torch.nn.functional.binary_cross_entropy_with_logits(net(images), labels).backward()
    optimiser.step()
