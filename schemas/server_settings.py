"""Settings of a language model's server, which `conan synthesize` and `conan judge` ask."""

from pydantic import Field

from .settings import Settings, setting


class ServerSettings(Settings):
    """A language model behind an OpenAI-compatible interface."""

    url: str = setting("http://localhost:8000/v1", "Base URL of the interface.", origin="chosen here: that of vLLM")
    model: str = Field(description="Name of the model, as the server calls it.")
    key_env: str = setting(
        "OPENAI_API_KEY",
        "Environment variable with the API key; without it none is sent. The key itself must not be in a recipe.",
    )
    concurrency: int = setting(8, "Requests at a time.", ge=1)
    timeout: float = setting(
        120,
        "Seconds after which a request has failed and is sent again, with a longer wait each time.",
        origin="chosen here: a busy server with one GPU takes tens of seconds for a long prompt",
        gt=0,
    )
    answer_tokens: int = setting(
        1024, "Longest answer, in tokens; models that think before they answer need more.", ge=1
    )
