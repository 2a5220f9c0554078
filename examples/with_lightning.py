"""Put gs-SGD into a LightningModule: attach when training starts, when the model is wrapped.

torchrun --nproc-per-node 2 examples/with_lightning.py
"""

import lightning
import torch
from digits import digits, network
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

import gsdist  # gsdist


class Classifier(lightning.LightningModule):
    """Tell the digits apart."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()

    def on_train_start(self) -> None:  # gsdist
        """Attach the exchange to what Lightning has wrapped in DistributedDataParallel."""
        config = gsdist.GsSgdConfig(compression=20)  # gsdist
        self.exchange = gsdist.attach(self.trainer.strategy.model, config)  # gsdist

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        """Return the loss of a batch."""
        images, labels = batch
        self.loss = cross_entropy(self.network(images), labels)
        return self.loss

    def on_train_epoch_end(self) -> None:
        """Say how far it is."""
        self.print(f"epoch {self.current_epoch}  loss {self.loss.item():.4f}")

    def on_train_end(self) -> None:
        """Say what was sent."""
        self.print(f"{self.exchange.stats().compression:.1f}x fewer bytes than dense")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def main() -> None:
    """Train a small network on two processes."""
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=10,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Classifier(), DataLoader(digits(), batch_size=32, shuffle=True, drop_last=True))


if __name__ == "__main__":
    main()
