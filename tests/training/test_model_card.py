"""The model card of a run is one that the model hub accepts, and says what the run measured."""

import csv

import pytest
from train import train

from tiny import TINY


def test_the_card_is_valid_for_the_hub_and_holds_the_run_s_numbers(composed, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    metrics = train(composed(*TINY, "visuals=[filters,health]", "callbacks.checkpoint.monitor=val/loss"), tmp_path)
    card = hub.ModelCard.load(tmp_path / "README.md")
    about = card.data.to_dict()
    assert about["pipeline_tag"] == "image-classification"
    results = {(each.dataset_split, each.metric_type): each.metric_value for each in card.data.eval_results}
    assert results["test", "accuracy"] == pytest.approx(metrics["test/acc"], abs=1e-4)
    assert results["val", "accuracy"] == pytest.approx(metrics["val/acc"], abs=1e-4)
    for part in (
        "## Results",
        "## Classes",
        "## health",
        "## Pictures",
        "filterscope train",
        "train 60, val 30, test 20",
    ):
        assert part in card.text
    with next((tmp_path / "predictions").glob("summary/*.csv")).open() as file:
        rows = {row["split"]: row for row in csv.DictReader(file)}
    assert float(rows["test"]["from"]) < metrics["test/acc"] < float(rows["test"]["to"])
