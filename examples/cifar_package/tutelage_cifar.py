"""The kind of model ``cifar``: ``cifar:resnet8x4`` and ``cifar:resnet32x4``, for images of 32 pixels (Tian 2020)."""

import re
from itertools import pairwise

from torch import Tensor, nn
from torch.nn.functional import relu

from tutelage.core.errors import TutelageError
from tutelage.data.input_spec import InputSpec
from tutelage.models.source import Model


def conv(inputs: int, outputs: int, size: int = 3, stride: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


class Block(nn.Module):
    """Two convolutions and a shortcut. The ReLU after them is a module of its own: a loss may look before it."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = conv(inputs, outputs, stride=stride), conv(outputs, outputs)
        self.shortcut = nn.Identity() if inputs == outputs else conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(relu(self.first(x))) + self.shortcut(x)


class ResNet(nn.Module):
    def __init__(self, depth: int, width: int, classes: int) -> None:
        super().__init__()
        blocks, channels = (depth - 2) // 6, [8 * width, 16 * width, 32 * width, 64 * width]
        self.stem, self.stages = nn.Sequential(conv(3, channels[0]), nn.ReLU()), nn.Sequential()
        for before, after in pairwise(channels):
            more = [Block(after, after, 1) for _ in range(blocks - 1)]
            layers = [Block(before, after, 2 if self.stages else 1), *more]
            self.stages.append(nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU()))))
        self.fc = nn.Linear(channels[-1], classes)
        self.feature_info = [{"module": f"stages.{n}", "num_chs": channels[n + 1]} for n in range(3)]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.stages(self.stem(x)).mean((2, 3)))


def load(where: str, *, num_classes: int | None = None, dropout: float | None = None) -> Model:
    found = re.fullmatch(r"resnet(8|14|20|32|44|56|110)x(\d)", where)
    if not found:
        raise TutelageError(f"cifar:{where}: give depth and width, such as cifar:resnet8x4")
    module = ResNet(int(found[1]), int(found[2]), num_classes or 100)
    spec = InputSpec(32, 32, mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761), crop_pct=1.0)
    return Model.of(module, name=where, input_spec=spec, origin="random", pretrained=False)
