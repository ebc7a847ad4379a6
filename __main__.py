"""`python -m conan_embedding` is `conan`."""

from .cli import main

if __name__ == "__main__":
    main()
