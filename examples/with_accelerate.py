"""Put gs-SGD into a script that uses Accelerate: attach after `prepare`.

accelerate launch --cpu --num_processes 2 examples/with_accelerate.py
torchrun --nproc-per-node 2 examples/with_accelerate.py
"""

import torch
from accelerate import Accelerator
from digits import digits, network
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

import gsdist  # gsdist


def main() -> None:
    """Train a small network on all processes of the job."""
    accelerator = Accelerator(cpu=True)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loader = DataLoader(digits(), batch_size=32, shuffle=True, drop_last=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    exchange = gsdist.attach(model, gsdist.GsSgdConfig(compression=20))  # gsdist

    for epoch in range(10):
        for images, labels in loader:
            optimizer.zero_grad()
            loss = cross_entropy(model(images), labels)
            accelerator.backward(loss)
            optimizer.step()
        accelerator.print(f"epoch {epoch}  loss {loss.item():.4f}")
    accelerator.print(f"{exchange.stats().compression:.1f}x fewer bytes than dense")
    accelerator.end_training()


if __name__ == "__main__":
    main()
