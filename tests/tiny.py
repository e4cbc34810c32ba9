"""The repository's path and the options of a run that takes seconds, for all tests."""

from pathlib import Path

REPOSITORY = Path(__file__).parent.parent

# The synthetic flowers at a size at which a whole run takes seconds.
TINY = (
    "data.image_size=24",
    "data.num_train=60",
    "data.num_val=30",
    "data.num_test=20",
    "data.batch_size=20",
    "model=small_cnn",
    "model.in_channels=3",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "trainer.max_epochs=2",
    "trainer.enable_progress_bar=false",
    "recipe.size=24",
    "recipe.steps=4",
)
