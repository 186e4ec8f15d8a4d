"""The kind of model ``tinynet``: ``tinynet:WIDTH`` is a small convolutional network for images of 32 pixels."""

from torch import nn

from tutelage.core.errors import TutelageError
from tutelage.data.input_spec import InputSpec
from tutelage.models.source import Model


def block(inputs: int, outputs: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def load(where: str, *, num_classes: int | None = None, dropout: float | None = None) -> Model:
    if not where.isdecimal() or int(where) < 1:
        raise TutelageError(f"tinynet:{where}: give the channels of the first layer, such as tinynet:16")
    width = int(where)
    module = nn.Sequential(
        block(3, width),
        block(width, 2 * width),
        block(2 * width, 4 * width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(dropout or 0.0),
        nn.Linear(4 * width, num_classes or 10),
    )
    half = (0.5, 0.5, 0.5)
    spec = InputSpec(32, 32, mean=half, std=half, crop_pct=1.0)
    return Model.of(module, name=f"tinynet:{where}", input_spec=spec, origin="random", pretrained=False)
