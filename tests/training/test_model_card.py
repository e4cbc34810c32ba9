"""The model card of a run is one that the model hub accepts, and says what the run measured."""

import re
from urllib.parse import unquote

import pytest
import torch
from train import train

from filterscope.training.loggers import data_name
from run_files import rows_of
from tiny import TINY


def test_the_card_is_valid_for_the_hub_and_holds_the_run_s_numbers(composed, tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    options = ("visuals=[filters,health]", "callbacks.checkpoint.monitor=val/loss", "export=[state_dict,torch_export]")
    metrics = train(composed(*TINY, *options, "mix=mixup", "callbacks=ema"), tmp_path)
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
        "# small_cnn trained on synthetic flowers",
        "from random weights",
        "| mix | mixup=0.2 |",
        "| callbacks | ema decay=0.999 |",
    ):
        assert part in card.text
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", card.text):
        assert (tmp_path / unquote(picture)).is_file()
    assert "![Confusion on test images" in card.text
    monkeypatch.chdir(tmp_path)
    images = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    answers = []
    for code in re.findall(r"```python\n(.*?)```", card.text, re.DOTALL):
        with torch.no_grad():
            exec(code, known := {"images": images})
        answers.append(known["logits"])
    assert len(answers) == 3
    for answer in answers[1:]:
        torch.testing.assert_close(answer, answers[0], atol=1e-5, rtol=0)
    rows = {row["split"]: row for row in rows_of(next((tmp_path / "predictions").glob("summary/*.csv")))}
    assert float(rows["test"]["from"]) < metrics["test/acc"] < float(rows["test"]["to"])


def test_images_that_were_trained_on_are_no_result(composed, tmp_path):
    train(composed(*TINY, "visuals=none", "data.train_splits=[train,val]"), tmp_path)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^ +split: (\w+)$", card, re.MULTILINE) == ["test"]
    assert re.findall(r"^\| (train|val|test) \|", card, re.MULTILINE) == ["test"]


def test_a_data_set_of_one_s_own_is_called_by_its_folder():
    def named(kind, **options):
        return data_name({"_target_": f"filterscope.data.{kind}DataModule", **options})

    assert named("fashion_mnist.FashionMNIST", root="data") == "fashion mnist"
    assert named("folder.Folder", root="/photos/my flowers/") == "my flowers"
    assert named("csv.CSV", root=".", csv="labels/birds.csv") == "birds.csv"
    assert named("shards.Shards", root="https://example.org/packed/birds/") == "birds"
