"""Further loss terms: weighted, averaged over matryoshka dims, named in the result, with the right gradient."""

import pytest
import torch
from conan_embedding.schemas.errors import RecipeError
from conan_embedding.trainer.loss.cbb import build_batch, cbb_loss, pretrain_loss
from conan_embedding.trainer.loss.terms import LOSS_TERMS, find_terms

BATCH = build_batch(["q", "r"], ["p", "s"], [["n"], ["m"]], left=["a"], right=["b"], labels=[0.5])


def small(embeddings: torch.Tensor, batch: object) -> torch.Tensor:
    return embeddings.square().sum()


@pytest.mark.parametrize("loss", [cbb_loss, pretrain_loss])
def test_a_term_is_weighted_and_named(loss) -> None:
    embeddings = torch.randn(len(BATCH.texts), 8, dtype=torch.float64, requires_grad=True)
    options = {"temperature": 0.1, "matryoshka_dims": [4, 8]}
    plain = loss(embeddings, BATCH, **options)
    found = loss(embeddings, BATCH, **options, terms={"small": (0.25, small)})
    by_hand = (embeddings[:, :4].square().sum() + embeddings.square().sum()) / 2
    assert list(found.terms) == [*plain.terms, "small"]
    assert found.terms["small"].item() == pytest.approx(by_hand.item())
    assert found.total.item() == pytest.approx((plain.total + 0.25 * by_hand).item())
    (expected,) = torch.autograd.grad(plain.total + 0.25 * by_hand, embeddings, retain_graph=True)
    (gradient,) = torch.autograd.grad(found.total, embeddings)
    assert torch.allclose(gradient, expected, rtol=1e-12)


def test_terms_are_found_by_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOSS_TERMS, "small", small)
    assert find_terms({"small": 0.25}, "recipe.yaml:3: finetune.loss_terms") == {"small": (0.25, small)}
    with pytest.raises(RecipeError, match=r"recipe\.yaml:3: .*no loss term is called 'smal'; did you mean 'small'"):
        find_terms({"smal": 1.0}, "recipe.yaml:3: finetune.loss_terms")
