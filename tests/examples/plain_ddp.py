"""Train in the style of torchvision's reference scripts: DDP as it is before gsdist comes in."""

import argparse
import os
import time

import torch
import torch.distributed as dist
import torchvision
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler
from torchvision import transforms


def train_one_epoch(model, criterion, optimizer, loader, epoch):
    model.train()
    begun = time.time()
    for step, (images, target) in enumerate(loader):
        output = model(images)
        loss = criterion(output, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 0 and dist.get_rank() == 0:
            print(f"epoch {epoch} step {step} loss {loss.item():.3f} {time.time() - begun:.1f} s")


@torch.inference_mode()
def evaluate(model, loader):
    model.eval()
    right = total = torch.zeros(1)
    for images, target in loader:
        right = right + (model(images).argmax(1) == target).sum()
        total = total + len(target)
    dist.all_reduce(right)
    dist.all_reduce(total)
    return (right / total).item()


def main(args):
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    dataset = torchvision.datasets.FakeData(640, (3, 32, 32), 10, transforms.ToTensor())
    sampler = DistributedSampler(dataset)
    loader = DataLoader(dataset, batch_size=args.batch_size, sampler=sampler)
    net = torchvision.models.resnet18(num_classes=10)
    model = nn.parallel.DistributedDataParallel(net)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=30, gamma=0.1)
    for epoch in range(args.epochs):
        sampler.set_epoch(epoch)
        train_one_epoch(model, criterion, optimizer, loader, epoch)
        scheduler.step()
        accuracy = evaluate(model, loader)
        if dist.get_rank() == 0:
            print(f"epoch {epoch} accuracy {accuracy:.3f}")
            os.makedirs(args.output_dir, exist_ok=True)
            checkpoint = {"model": net.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(checkpoint, os.path.join(args.output_dir, "checkpoint.pth"))
    dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--output-dir", default="out")
    main(parser.parse_args())
