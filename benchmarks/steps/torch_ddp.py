"""PyTorch: DistributedDataParallel on gloo; with one rank, PyTorch alone."""

import os

import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.steps import common

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
CONVOLUTIONS = (  # filters, kernel, stride, padding, is pooled
    (96, 11, 4, 0, True),
    (256, 5, 1, 2, True),
    (384, 3, 1, 1, False),
    (384, 3, 1, 1, False),
    (256, 3, 1, 1, True),
)


def model() -> nn.Sequential:
    """Return the network: BatchNorm behind ReLU, then pooling where there is any."""
    layers: list[nn.Module] = []
    channels = 3
    for filters, kernel, stride, padding, is_pooled in CONVOLUTIONS:
        layers += [nn.Conv2d(channels, filters, kernel, stride, padding), nn.ReLU(inplace=True)]
        layers.append(nn.BatchNorm2d(filters, eps=1e-3, momentum=0.01))
        layers += [nn.MaxPool2d(3, 2)] if is_pooled else []
        channels = filters
    layers.append(nn.Flatten())
    for inputs in (channels * 6 * 6, 4096):
        layers += [nn.Linear(inputs, 4096), nn.ReLU(inplace=True), nn.Dropout(0.5)]
    layers.append(nn.Linear(4096, common.CLASSES))
    found = nn.Sequential(*layers)
    statistics = 2 * sum(
        layer.num_features for layer in layers if isinstance(layer, nn.BatchNorm2d)
    )
    parameters = statistics + sum(parameter.numel() for parameter in found.parameters())
    if parameters != common.PARAMETERS:
        raise AssertionError(f"{parameters} parameters, not {common.PARAMETERS}")
    return found


def main() -> None:
    """Train."""
    parser = common.parser()
    parser.add_argument("--format", choices=FORMATS, default="contiguous")
    parser.add_argument("--compile", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    layout = FORMATS[given.format]
    network: nn.Module = model().to(memory_format=layout)
    if given.ranks > 1:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(given.ports[0])}
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        dist.init_process_group("gloo", rank=given.rank, world_size=given.ranks)
        network = nn.parallel.DistributedDataParallel(network, gradient_as_bucket_view=True)
    if given.compile:
        network = torch.compile(network)
    decay = {"momentum": common.MOMENTUM, "weight_decay": common.WEIGHT_DECAY}
    optimizer = torch.optim.SGD(network.parameters(), common.RATE, **decay, fused=True)

    side = common.SIZE
    pixels = torch.randint(0, 256, (given.batch, 3, side, side), dtype=torch.uint8)
    pixels = pixels.contiguous(memory_format=layout)
    labels = torch.randint(0, common.CLASSES, (given.batch,))
    mean = torch.tensor([125.0, 115.0, 105.0]).view(1, 3, 1, 1)
    std = torch.tensor([65.0, 64.0, 66.0]).view(1, 3, 1, 1)

    def step() -> Tensor:
        loss = nn.functional.cross_entropy(network((pixels.float() - mean) / std), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    stopwatch = common.Stopwatch(given)
    for _ in range(stopwatch.total_steps):
        step().item()
        stopwatch()
    common.meet(given, "ended")
    if given.ranks > 1:
        dist.destroy_process_group()
    common.report(stopwatch)


if __name__ == "__main__":
    main()
