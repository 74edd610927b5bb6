"""X-Robots-Tag: the uses that the server of an image forbids."""

from collections.abc import Collection, Iterable

# Directives with a value: the word before their colon is not a robot.
VALUED = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")
IMPLIED = {"none": ("noindex", "nofollow")}


def refusals(headers: Iterable[str], token: str, directives: Collection[str]) -> list[str]:
    """Returns, sorted, those of `directives` that the header lines contain for every robot or for the robot `token`.

    `otherbot: noai, noindex` applies to one robot, up to the next name in the same line.
    """
    seen: set[str] = set()
    for header in headers:
        applies = True
        for part in header.lower().split(","):
            name, colon, rest = part.partition(":")
            if colon and name.strip() not in VALUED:
                applies = name.strip() == token.lower()
                part = rest
            if applies:
                directive = part.strip()
                seen.update(IMPLIED.get(directive, (directive,)))
    return sorted(seen.intersection(directives))
