"""Put gs-SGD under the Trainer of Hugging Face: a callback attaches it when training begins.

torchrun --nproc-per-node 2 examples/with_transformers.py
"""

from tempfile import TemporaryDirectory

from digits import digits, network
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from gsdist import GsSgdConfig, attach  # gsdist


class Items(Dataset[dict[str, Tensor]]):
    """Name the parts of each example as the Trainer wants them."""

    def __init__(self) -> None:
        self.digits = digits()

    def __len__(self) -> int:
        return len(self.digits)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image, label = self.digits[index]
        return {"images": image, "labels": label}


class Classifier(nn.Module):
    """Return loss and logits, as models of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Classify a batch."""
        logits = self.network(images)
        return {"loss": cross_entropy(logits, labels), "logits": logits}


def main() -> None:
    """Train a small network on all processes of the job."""
    with TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            use_cpu=True,
            num_train_epochs=10,
            per_device_train_batch_size=32,
            learning_rate=0.1,
            optim="sgd",
            optim_args="momentum=0.9",
            logging_strategy="epoch",
            save_strategy="no",
            ddp_find_unused_parameters=False,
            report_to="none",
            disable_tqdm=True,
        )
        trainer = Trainer(Classifier(), arguments, train_dataset=Items())

        class Exchange(TrainerCallback):  # gsdist
            def on_train_begin(self, *_: object, **__: object) -> None:  # gsdist
                self.exchange = attach(trainer.model_wrapped, GsSgdConfig(compression=20))  # gsdist

            def on_log(self, *_: object, logs: dict[str, float], **__: object) -> None:
                if trainer.is_world_process_zero() and "loss" in logs:
                    print(f"epoch {logs['epoch']}  loss {float(logs['loss']):.4f}")

            def on_train_end(self, *_: object, **__: object) -> None:
                if trainer.is_world_process_zero():
                    print(f"{self.exchange.stats().compression:.1f}x fewer bytes than dense")

        trainer.add_callback(Exchange)  # gsdist
        trainer.train()


if __name__ == "__main__":
    main()
