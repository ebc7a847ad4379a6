"""`python -m conan_embedding` does the same as `conan`."""

from .cli import main

if __name__ == "__main__":
    main()
