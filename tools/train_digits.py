"""Train models.Digits on scikit-learn's handwritten digits: python tools/train_digits.py

About a minute on a CPU. Seeded, so that a second run on the same machine gives
the same weights; they are written to code/hfusion/digits.npz, whole or not at all.
"""

import os

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from hfusion import models

EPOCHS = 40


def data():
    """(train x, test x, train y, test y): x [N, 1, 8, 8] from 0 to 1, y the digits."""
    digits = load_digits()
    x = torch.from_numpy(digits.images[:, None] / 16).float()
    y = torch.from_numpy(digits.target)
    parts = train_test_split(x, y, test_size=0.25, random_state=0, stratify=y)
    return [torch.as_tensor(part) for part in parts]


def train(model, x, y):
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    batches = -(-len(x) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, EPOCHS * batches)
    model.train()
    for epoch in range(EPOCHS):
        total = 0.0
        for batch in torch.randperm(len(x)).split(64):
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item() * len(batch)
        print(f"epoch {epoch + 1:2} of {EPOCHS}, loss {total / len(x):.4f}", flush=True)
    return model.eval()


def accuracy(model, x, y):
    with torch.no_grad():
        return (model(x).argmax(dim=1) == y).double().mean().item()


def main():
    torch.manual_seed(0)
    x_train, x_test, y_train, y_test = data()
    model = train(models.Digits(), x_train, y_train)
    print(f"test accuracy {accuracy(model, x_test, y_test):.4f}")
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    whole = models.DIGITS_WEIGHTS.with_suffix(".tmp.npz")
    np.savez_compressed(whole, **arrays)
    os.replace(whole, models.DIGITS_WEIGHTS)


if __name__ == "__main__":
    main()
