"""Pack a data set into shards for `data=shards`: `filterscope pack`."""

import logging
from pathlib import Path

import hydra
from omegaconf import DictConfig

from filterscope.cli.main import report_errors, resolve_config, run_folder, run_script
from filterscope.cli.search_path import CONF

log = logging.getLogger("filterscope")


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="pack")
def main(cfg: DictConfig) -> None:
    """Pack one data set."""
    with report_errors():
        config = resolve_config(cfg)
        from filterscope.config.factory import build_data
        from filterscope.data.shards import pack

        data = build_data(config)
        log.info("%s: %s", data.location, data.describe())
        folder = Path(run_folder())
        count = pack(
            data.splits,
            data.class_names,
            folder,
            shard_bytes=int(config["shard_mb"] * 1e6),
            bit_depth=data.bit_depth,
        )
        log.info("%d shards in %s; to train on them: data=shards data.root=%s", count, folder, folder)


if __name__ == "__main__":
    run_script(main)
