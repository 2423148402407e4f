"""Features of images in which sets of them are compared: the last hidden layer of a small classifier."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppl_vae import nets
from ppl_vae.arguments import whole
from ppl_vae.batches import Source, source
from ppl_vae.data.splits import Splits
from ppl_vae.programs import Programs, forked_random_state, undisturbed
from ppl_vae.progress import progress_bar

__all__ = ["Features", "train_features"]

BATCH_SIZE = 64
UPDATES = 1000


class Features(nn.Module):
    """A classifier of images, called for its last hidden layer: ``(n, height * width) -> (n, dims)``.

    Args:
        shape: height and width of an image.
        classes: number of labels.
        dims: width of the last hidden layer. A Fréchet distance needs more images than that.

    Attributes:
        accuracy: share of the test images whose label was found; NaN before training.

    Example:
        >>> Features((8, 8), 10)(torch.rand(3, 64)).shape
        torch.Size([3, 32])
    """

    def __init__(self, shape: tuple[int, int], classes: int, dims: int = 32):
        super().__init__()
        self.hidden = nn.Sequential(nets.ConvEncoder(shape, dims), nn.LeakyReLU())
        self.to_classes = nn.Linear(dims, classes)
        self.accuracy = float("nan")

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of images."""
        return self.hidden(x)

    def logits(self, x: Tensor) -> Tensor:
        """Return the unnormalised log-probabilities of the labels, ``(n, classes)``.

        Example:
            >>> Features((8, 8), 10).logits(torch.rand(3, 64)).shape
            torch.Size([3, 10])
        """
        return self.to_classes(self.hidden(x))


def train_features(
    data: Splits, seed: int = 0, epochs: int | None = None, *, dims: int = 32, progress: bool | None = None
) -> Features:
    """Train a small convolutional classifier on a labelled data set, for the features of its last hidden layer.

    Cross entropy, batches of 64, Adam under one cycle of step sizes that rise to 0.01 and fall to zero. Training
    images are binarized as `ppl_vae.fit` does it, so that features know the images that they will see.

    Args:
        data: a data set with labels (``data.info.labels``).
        seed: seeds parameters, order and binarization; the caller's random state does not move.
        epochs: passes over the training images; as many as make 1,000 updates when left out.
        dims: number of features.
        progress: whether to show a bar; by default where a terminal or notebook shows it.

    Returns:
        `Features`, in evaluation mode, where the data are, with its accuracy on the test images.

    Raises:
        TypeError, ValueError: the data have no labels, or an option cannot be used.

    Reference: features of a classifier as the space for comparing generative models: M. Heusel et al., "GANs
    Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", NeurIPS 2017,
    https://arxiv.org/abs/1706.08500; one cycle: L. Smith, N. Topin, "Super-Convergence: Very Fast Training of
    Neural Networks Using Large Learning Rates", 2018, https://arxiv.org/abs/1708.07120.

    Example:
        >>> features = pv.quality.train_features(pv.data.load("digits"), epochs=20)
        >>> features.accuracy > 0.8, features(torch.rand(5, 64)).shape
        (True, torch.Size([5, 32]))
    """
    for name, value in (("epochs", UPDATES if epochs is None else epochs), ("dims", dims)):
        whole(name, value)
    labels = _labels(data)
    batches = source((data.train, labels["train"]), BATCH_SIZE, data.info.transform)
    epochs = epochs or -(-UPDATES // batches.batches)
    with forked_random_state(seed):
        features = Features(data.info.shape, 1 + max(int(y.max()) for y in labels.values()), dims)
        _train(features.to(data.train.device), batches, epochs, progress)
    features.accuracy = _accuracy(features, data.test, labels["test"])
    return features.eval()


def _labels(data: Splits) -> Mapping[str, Tensor]:
    if not isinstance(data, Splits):
        raise TypeError(f"data: expected Splits, such as pv.data.load gives, found {type(data).__name__}")
    missing = {"train", "test"} - data.info.labels.keys()
    if missing:
        raise ValueError(
            f"data: '{data.info.name}' has no labels for {' and '.join(sorted(missing))}, from which features are "
            "learnt; train them on a labelled set of such images (mnist for static_mnist), or compare with features of "
            "your own, or with none"
        )
    return {split: data.info.labels[split].long() for split in ("train", "test")}


def _train(features: Features, batches: Source, epochs: int, progress: bool | None) -> None:
    steps = epochs * batches.batches
    optimizer = torch.optim.Adam(features.parameters())
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=steps + 1)
    order = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
    with torch.enable_grad(), progress_bar("Training features", steps, progress) as bar:
        for _ in range(epochs):
            for x, y in batches.shuffled(order):
                loss = F.cross_entropy(features.logits(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                cycle.step()
                bar.advance(lambda loss=loss: f"cross entropy {float(loss):.3f}")


def _accuracy(features: Features, x: Tensor, labels: Tensor) -> float:
    with undisturbed(Programs(features, features), training=False), torch.no_grad():
        found = torch.cat([features.logits(block).argmax(1) for block in x.split(1000)])
    return float((found == labels).double().mean())
