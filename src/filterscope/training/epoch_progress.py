"""The progress bar, which counts epochs as pictures and metrics do: the first one that ends is epoch 1."""

from pytorch_lightning.callbacks import RichProgressBar


class EpochProgressBar(RichProgressBar):
    """Rich's bars, one kept for each epoch."""

    def __init__(self) -> None:
        super().__init__(leave=True)

    def _get_train_description(self, current_epoch: int) -> str:
        label = f"Epoch {current_epoch + 1}/{self.trainer.max_epochs}"
        return f"{label:{len(self.validation_description)}}"  # as wide as the other bar's, or they flicker
