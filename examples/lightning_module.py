"""A `Distiller` in a Lightning module. Run it: python examples/lightning_module.py (needs `pip install lightning`)"""

import lightning
import timm
import torch
from own_training_loop import accuracy, digits, train
from torch import Tensor
from torch.utils.data import DataLoader

from tutelage import Distiller, Teacher
from tutelage.losses import KL, CrossEntropy, FeatureMSE


class Distillation(lightning.LightningModule):
    def __init__(self, distiller: Distiller, lr: float = 3e-3) -> None:
        super().__init__()
        self.distiller, self.lr = distiller, lr

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        losses = self.distiller(*batch)
        self.log_dict({f"train/{name}": value for name, value in losses.items() if name != "logits"})
        return losses["loss"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.distiller.trainable_parameters(), lr=self.lr)


def main(epochs: int = 3) -> dict[str, float]:
    lightning.seed_everything(0)
    train_data, test_data = digits()
    teacher = timm.create_model("test_resnet", num_classes=10)
    student = timm.create_model("test_efficientnet_gn", num_classes=10)
    train(Distiller(teacher), train_data, epochs)
    hints = FeatureMSE(student=-1, teacher=-1, weight=0.1)  # the last maps of both, with a linear projector
    distiller = Distiller(student, Teacher(teacher), [KL(), CrossEntropy(0.5), hints], image_size=(32, 32))
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(Distillation(distiller), DataLoader(train_data, batch_size=32, shuffle=True))
    return {"teacher": accuracy(teacher, test_data), "student": accuracy(student, test_data)}


if __name__ == "__main__":
    print(main())
