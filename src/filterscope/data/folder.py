"""Your own images: `train/ valid/ test/` folders of class folders, or one folder of class folders that is split."""

from dataclasses import dataclass

from filterscope.data.class_folders import display_names, split_files, split_folders
from filterscope.data.datamodule import ImageDataModule
from filterscope.data.images import DataSplits
from filterscope.errors import UserError
from filterscope.registry import register


@register("data")
@dataclass(kw_only=True, eq=False, repr=False)
class FolderDataModule(ImageDataModule):
    """Images in one folder for each class, below `root` itself or below its `train`, `valid` and `test`.

    Classes are called like their folders, or as a `cat_to_name.json` beside them says. A validation split that is not
    there is cut from the training images, stratified and seeded; a test split only where there are no split folders.
    """

    val_fraction: float = 0.15
    test_fraction: float = 0.15

    def find(self) -> DataSplits:
        """List the class folders and their images."""
        if not self.folder.is_dir():
            raise UserError(f"data.root={self.root}: there is no such folder")
        splits = split_folders(self.folder)
        if splits and "train" not in splits:
            raise UserError(f"{self.folder} has {', '.join(p.name for p in splits.values())} but no train folder")
        order, files = split_files(splits or {"train": self.folder})
        return DataSplits(
            place=str(splits.get("train", self.folder)),
            class_names=display_names(order, self.folder),
            train=files["train"],
            val=files.get("val"),
            test=files.get("test"),
            held_out={"val": self.val_fraction, "test": 0.0 if splits else self.test_fraction},
        )
