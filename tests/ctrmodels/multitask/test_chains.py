from __future__ import annotations

import pytest
import torch

from ctrmodels.data.schema import Objective
from ctrmodels.errors import InputError
from ctrmodels.multitask.chains import Chain, Event, Factor, esmm, independent, path

OBJECTIVES = (Objective("click"), Objective("cart", after="click"), Objective("buy", after="cart"),
              Objective("dwell", "regression", after="click"))


def logits(n: int = 64, scale: float = 3.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: scale * torch.randn(n, generator=generator, dtype=torch.float64) for name in ("click", "cart", "buy")}


@pytest.mark.parametrize("chain", [independent(OBJECTIVES), esmm(OBJECTIVES)])
def test_joint_events_are_products_along_the_funnel(chain: Chain) -> None:
    heads = logits()
    p = {name: value.exp() for name, value in chain.log_probabilities(heads).items()}
    s = {name: value.sigmoid() for name, value in heads.items()}
    torch.testing.assert_close(p["click@all"], s["click"])
    torch.testing.assert_close(p["cart@click"], s["cart"])
    torch.testing.assert_close(p["cart@all"], s["click"] * s["cart"])
    torch.testing.assert_close(p["buy@cart"], s["buy"])
    torch.testing.assert_close(p["buy@all"], s["click"] * s["cart"] * s["buy"])
    assert set(p) == {"click@all", "cart@click", "cart@all", "buy@cart", "buy@all"}


def test_what_a_loss_looks_at_is_all_that_tells_the_two_chains_apart() -> None:
    assert independent(OBJECTIVES).events == esmm(OBJECTIVES).events
    assert independent(OBJECTIVES).supervised == ("click@all", "cart@click", "buy@cart")
    assert esmm(OBJECTIVES).supervised == ("click@all", "cart@all", "buy@all")


def test_a_later_step_is_never_more_likely_than_an_earlier_one() -> None:
    heads = logits(1000, scale=30.0)
    p = esmm(OBJECTIVES).log_probabilities(heads)
    assert (p["buy@all"] <= p["cart@all"]).all() and (p["cart@all"] <= p["click@all"]).all()


def test_a_certain_conversion_makes_the_joint_event_as_likely_as_the_click() -> None:
    heads = logits() | {"cart": torch.full((64,), float("inf"), dtype=torch.float64)}
    p = esmm(OBJECTIVES).log_probabilities(heads)
    assert torch.equal(p["cart@all"], p["click@all"])


def test_events_may_be_sums_of_products_with_complements() -> None:
    """Purchase by two paths, after an action or without it (ESM2's graph), from the same data structure."""
    heads = logits() | {"direct": logits()["buy"].flip(0)}
    s = {name: value.sigmoid() for name, value in heads.items()}
    click, act, buy, direct = Factor("click"), Factor("cart"), Factor("buy"), Factor("direct")
    event = Event("buy", "all", ((click, act, buy), (click, Factor("cart", complement=True), direct)))
    expected = s["click"] * (s["cart"] * s["buy"] + (1 - s["cart"]) * s["direct"])
    torch.testing.assert_close(event.log_probability(heads).exp(), expected)


def test_path_leads_from_the_first_ancestor_to_the_objective() -> None:
    assert path(OBJECTIVES, "buy") == ("click", "cart", "buy")
    assert path(OBJECTIVES, "click") == ("click",)


def test_esmm_without_a_chain_is_refused_in_one_line_that_names_what_is_missing() -> None:
    with pytest.raises(InputError, match=r"data\.objectives.*after:.*retrain\.models") as caught:
        esmm((Objective("like"), Objective("dwell", "regression", after="like")))
    assert "\n" not in str(caught.value)


def test_a_chain_cannot_supervise_an_event_it_does_not_have() -> None:
    with pytest.raises(ValueError, match="love@all"):
        Chain((Event("like", "all", ((Factor("like"),),)),), ("love@all",))
