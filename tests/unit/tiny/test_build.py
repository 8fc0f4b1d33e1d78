"""The model card that ships with the weights is that of their build."""

from __future__ import annotations

from medr1_ray.config import tiny_model_path
from medr1_ray.tiny.build import model_card
from medr1_ray.tiny.eyes import EyePlan
from medr1_ray.tiny.pretrain import Plan


def test_the_shipped_card_describes_the_shipped_build() -> None:
    card = (tiny_model_path() / "README.md").read_text()
    table = card[card.index("| mode |") :].rstrip("\n")
    # 1,550,688 parameters, as the log has them.
    assert card.rstrip("\n") == model_card(Plan(), 0, 1_550_688, table).rstrip("\n")
    log = (tiny_model_path().parent / "build_log.txt").read_text()
    assert "parameters 1550688" in log
    assert str(Plan()) in log
    assert str(EyePlan()) in log
    assert table in log
