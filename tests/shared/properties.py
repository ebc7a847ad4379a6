"""The examples that property tests draw: always the same in `make test`, new and more of them in `make fuzz`.

Both come from the profile that this module loads; tests that want a number other than a hundred are decorated with
`@max_examples(number)` instead of Hypothesis's own `@settings`, so that `make fuzz` can multiply it.
"""

import functools
import math
import os
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings  # noqa: TID251
from hypothesis.errors import UnsatisfiedAssumption

SEED = os.environ.get("CONAN_FUZZ", "")
FUZZ = bool(SEED)
FUZZ_SECONDS = 600
FACTOR = 50 if FUZZ else 1

settings.register_profile(
    "conan",
    max_examples=100 * FACTOR,
    derandomize=not FUZZ,
    database=None,  # what `make fuzz` finds becomes an @example
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],  # other programs run as well
)
settings.load_profile("conan")


def max_examples(number: int) -> settings:
    """Draw this many examples, FACTOR times as many under `make fuzz`."""
    return settings(max_examples=number * FACTOR)


clock = SimpleNamespace(share=math.inf, end=math.inf, has_failed=False)
"""Under `make fuzz`: seconds per test, when the running test's time ends, and whether it has found a failure."""


def share_time(items: list[pytest.Item], workers: int) -> None:
    """Give each test an equal share of FUZZ_SECONDS."""
    clock.share = FUZZ_SECONDS * workers / max(1, len(items))
    functions = {item.obj for item in items if getattr(getattr(item, "obj", None), "is_hypothesis_test", False)}
    for function in functions:
        function.hypothesis.inner_test = within_its_share(function.hypothesis.inner_test)


def start_clock() -> None:
    clock.end, clock.has_failed = time.monotonic() + clock.share, False


def time_is_over() -> bool:
    return time.monotonic() > clock.end


def within_its_share(test: Callable[..., None]) -> Callable[..., None]:
    """Skip the examples that there is no time for, unless one has failed and is being shrunk."""

    @functools.wraps(test)
    def run(*arguments: Any, **options: Any) -> None:
        if time_is_over() and not clock.has_failed:
            pytest.skip(f"{clock.share:.0f} s without a failure")
        try:
            test(*arguments, **options)
        except UnsatisfiedAssumption:
            raise
        except Exception:
            clock.has_failed = True
            raise

    return run
