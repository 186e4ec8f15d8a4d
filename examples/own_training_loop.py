"""A training loop of your own around a `Distiller`. Run it: python examples/own_training_loop.py"""

import timm
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, TensorDataset

from tutelage import Distiller, Teacher
from tutelage.losses import KL, CrossEntropy


def digits() -> tuple[TensorDataset, TensorDataset]:
    """1,400 images to train on and 397 to test, 32 pixels, values from -1 to 1."""
    bunch = load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32).div(8).sub(1).unsqueeze(1).repeat(1, 3, 1, 1)
    images, labels = interpolate(images, (32, 32), mode="bilinear"), torch.tensor(bunch.target)
    return TensorDataset(images[:1400], labels[:1400]), TensorDataset(images[1400:], labels[1400:])


def train(distiller: Distiller, data: TensorDataset, epochs: int) -> None:
    """The loop: a `Distiller` is a module that returns its losses by name."""
    optimizer = torch.optim.AdamW(distiller.trainable_parameters(), lr=3e-3)
    distiller.train()
    for _ in range(epochs):
        for images, labels in DataLoader(data, batch_size=32, shuffle=True):
            losses = distiller(images, labels)
            losses["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()


@torch.no_grad()
def accuracy(network: nn.Module, data: TensorDataset) -> float:
    images, labels = data.tensors
    return 100 * (network.eval()(images).argmax(1) == labels).float().mean().item()


def main(epochs: int = 3) -> dict[str, float]:
    torch.manual_seed(0)
    train_data, test_data = digits()
    teacher = timm.create_model("test_resnet", num_classes=10)
    student = timm.create_model("test_efficientnet_gn", num_classes=10)
    train(Distiller(teacher), train_data, epochs)  # without a teacher: cross-entropy with the labels
    terms = [KL(weight=1, temperature=2), CrossEntropy(weight=0.5)]
    train(Distiller(student, Teacher(teacher), terms), train_data, epochs)
    return {"teacher": accuracy(teacher, test_data), "student": accuracy(student, test_data)}


if __name__ == "__main__":
    print(main())
