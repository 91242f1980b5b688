"""The faults that many keys can have: dotted key, value, what is allowed, remedy."""

from collections.abc import Iterator


def positive(path, section, *keys) -> Iterator[str]:
    for key in keys:
        if (value := getattr(section, key)) <= 0:
            yield f"{path}.{key}: {value}; must be above 0; raise it"


def at_least_0(path, section, *keys) -> Iterator[str]:
    for key in keys:
        if (value := getattr(section, key)) < 0:
            yield f"{path}.{key}: {value}; must be 0 or more; raise it"


def choice(path, section, key, *allowed) -> Iterator[str]:
    if (value := getattr(section, key)) not in allowed:
        yield f"{path}.{key}: {value!r}; allowed: {', '.join(allowed)}; choose one"
