"""Draw the tuning of AlexNet's first layers: docs/images/tuning_*.webp.

`python docs/make_tuning_pictures.py REAL`, where REAL contains Flowers 102 and `weights/`.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

DOCS = Path(__file__).parent
PICTURES = {
    "filters": "tuning/block1_conv1",
    "overview": "tuning/block1_conv1/overview",
    "second": "tuning/block2_conv1",
}


def main() -> None:
    """Run visualize.py on the published weights and convert its pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("real", type=Path, metavar="REAL")
    real = parser.parse_args().real.resolve()
    with tempfile.TemporaryDirectory() as folder:
        options = [
            "model=alexnet",
            f"model.weights={real / 'weights/alexnet_features.pth'}",
            "data=flowers",
            f"data.root={real}",
            "visuals=tuning",
            "visuals.tuning.channels=16",
            f"hydra.run.dir={folder}",
        ]
        subprocess.run([sys.executable, "visualize.py", *options], cwd=DOCS.parent, check=True)
        for name, tag in PICTURES.items():
            with Image.open(Path(folder) / "pictures" / f"{tag}.png") as image:
                image.convert("RGB").save(DOCS / "images" / f"tuning_{name}.webp", quality=80, method=6)


if __name__ == "__main__":
    main()
