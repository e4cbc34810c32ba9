"""The small network of the FashionMNIST notebook, with two convolutions and two Linears."""

from collections import OrderedDict

from torch import nn


class SmallCNN(nn.Sequential):
    """conv 10 – pool – conv 20 – pool – fc 50 – dropout – fc, with 3×3 kernels.

    The parameters have the notebook's names (`conv1 conv2 fc1 fc2`), so that its state dict loads.
    Images are `(N, in_channels, image_size, image_size)`; the output is `(N, num_classes)`.
    """

    def __init__(
        self,
        *,
        in_channels: int = 1,
        image_size: int = 28,
        num_classes: int = 10,
        dropout: float = 0.4,
    ) -> None:
        side = ((image_size - 2) // 2 - 2) // 2  # two unpadded 3×3 convolutions, each followed by a pooling of 2
        super().__init__(
            OrderedDict(
                conv1=nn.Conv2d(in_channels, 10, 3),
                relu1=nn.ReLU(),
                pool1=nn.MaxPool2d(2),
                conv2=nn.Conv2d(10, 20, 3),
                relu2=nn.ReLU(),
                pool2=nn.MaxPool2d(2),
                flatten=nn.Flatten(),
                fc1=nn.Linear(20 * max(side, 0) ** 2, 50),
                relu3=nn.ReLU(),
                fc1_drop=nn.Dropout(dropout),
                fc2=nn.Linear(50, num_classes),
            )
        )
