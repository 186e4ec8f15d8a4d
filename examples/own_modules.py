"""Networks of your own as teacher and student of a whole run. Run it: python examples/own_modules.py"""

import sys
from pathlib import Path

from torch import nn

import tutelage
from tutelage import InputSpec, Model, Result


def network(width: int) -> nn.Module:
    """Any module that turns normalised images (B, 3, H, W) into logits (B, C)."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, width), (width, 2 * width), (2 * width, 4 * width)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10))


def model(width: int) -> Model:
    """The module with what tutelage cannot know: the images that it takes, and that its weights are random."""
    spec = InputSpec(32, 32, mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=1.0)
    return Model.of(network(width), input_spec=spec, name=f"own-{width}", pretrained=False)


def main(runs: Path, epochs: int = 4, **settings: object) -> Result:
    return tutelage.distill(
        teacher=model(32),
        student=model(8),
        data="digits",
        epochs=epochs,
        lr=3e-3,
        runs=runs,
        settings={
            "teacher.fit": {"epochs": epochs, "lr": 3e-3},
            "view.flip": 0.0,
            "train.batch_size": 32,
            **settings,
        },
    )


if __name__ == "__main__":
    result = main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs"))
    print(result.verdict.sentence)
    print(f"{result.student.name}: {result.student_file}; the page: {result.report}")
