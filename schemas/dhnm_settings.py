"""Settings of dynamic hard negative mining; settings.py says what a field's description and origin are."""

from typing import Any, Literal, Self

from pydantic import SerializerFunctionWrapHandler, model_serializer, model_validator

from .settings import Settings, setting

V2 = "Conan-embedding-v2 (arXiv 2509.12892) eq. 6"
V2_DEFAULTS = {"factor": 1.2, "ceiling": 0.7}
"""Conan-embedding-v2 (arXiv 2509.12892), eq. 6: the keys of both policies that have other values there."""
KEYS_OF_POLICY = {"v1": ("check_every", "offset"), "v2": ("floor",)}


class HardNegativeMining(Settings):
    """Dynamic hard negative mining (DHNM, paper §2.2; Conan-embedding-v2, arXiv 2509.12892, eq. 6).

    `check_every` and `offset` belong to policy v1, `floor` to v2; with the other policy they are errors.
    """

    enabled: bool = setting(
        True, "Replace negatives that have become easy. `false` keeps each query's first ones.", origin="paper §2.2"
    )
    policy: Literal["v1", "v2"] = setting(
        "v1",
        "What is judged, and when. v1: the mean of a query's negatives, every `check_every` steps; all of them are"
        " replaced. v2: each negative by its own score, at every step; it alone is replaced, by the pool's next"
        " candidate.",
        origin="paper §2.2",
    )
    check_every: int = setting(100, "v1: steps between checks for easy negatives.", origin="paper §2.2", ge=1)
    factor: float = setting(
        1.15,
        "Negatives are easy once `factor` × their cosine is below the first one measured: the mean of the query's (v1;"
        " default 1.15), or each one's own (v2; default 1.2). A lower factor replaces them sooner.",
        origin=f"paper §2.2; {V2}",
        gt=0,
    )
    ceiling: float = setting(
        0.8,
        "A second condition: the absolute value of the mean cosine (v1; default 0.8), or the negative's cosine (v2;"
        " default 0.7), is below this. Raise it for models whose cosines are all high.",
        origin=f"paper §2.2; {V2}",
        gt=0,
    )
    floor: float = setting(
        0.4,
        "v2: a negative whose first cosine has an absolute value below this was never hard and is replaced at once."
        " Raise it for models whose cosines are all high; 0 turns it off.",
        origin=V2,
        ge=0,
    )
    offset: int = setting(
        10,
        "v1: ranks of the pool that replacements skip, as the best ones may be false negatives: the i-th replacement"
        " takes n negatives from rank (i − 1) · n + `offset` on.",
        origin="paper §2.2",
        ge=0,
    )
    refresh: Literal["static", "rerank", "remine"] = setting(
        "static",
        "Where the next negatives come from. static: the pool as `conan mine` ranked it. rerank (v1 only): the query's"
        " candidates, scored again with the current weights. remine: the pool, mined again every `remine_every` steps,"
        " at the cost of `conan mine`.",
        origin="paper §2.2",
    )
    remine_every: int = setting(1000, "Steps between two minings of all pools, for `refresh: remine`.", ge=1)

    @model_validator(mode="before")
    @classmethod
    def _keys_fit_the_policy(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        policy = values.get("policy", "v1")
        other = "v1" if policy == "v2" else "v2"
        if foreign := [key for key in KEYS_OF_POLICY[other] if key in values]:
            raise ValueError(
                f"{' and '.join(foreign)} would have no effect, as only policy {other} looks at it; remove it, or"
                f" replace the whole section: --set 'finetune.hard_negative_mining={{policy: {policy}}}'"
            )
        return V2_DEFAULTS | values if policy == "v2" else values

    @model_validator(mode="after")
    def _candidates_are_cheap(self) -> Self:
        if self.policy == "v2" and self.refresh == "rerank":
            raise ValueError(
                "refresh: rerank needs policy v1; v2 replaces negatives at every step, and rerank would encode all"
                " candidates of their queries each time; take static or remine"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_foreign_keys(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the keys of the other policy, so that what is written can be read again."""
        foreign = KEYS_OF_POLICY["v1" if self.policy == "v2" else "v2"]
        return {key: value for key, value in serialize(self).items() if key not in foreign}
