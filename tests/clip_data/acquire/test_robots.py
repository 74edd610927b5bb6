import pytest

from clip_data.acquire import AcquireConfig
from clip_data.acquire.robots import refusals

DIRECTIVES = AcquireConfig().opt_out_directives


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ([], []),
        (["noai"], ["noai"]),
        (["NoAI, NoImageAI"], ["noai", "noimageai"]),
        (["nofollow", "noindex"], ["noindex"]),
        (["noml ,noimageindex"], ["noimageindex", "noml"]),
        (["none"], ["noindex"]),
        (["all"], []),
        (["otherbot: noai"], []),
        (["otherbot: noai, noindex"], []),
        (["clip-data: noai"], ["noai"]),
        (["Clip-Data: noai"], ["noai"]),
        (["otherbot: noai, clip-data: noml"], ["noml"]),
        (["noindex, otherbot: noai"], ["noindex"]),
        (["unavailable_after: 25 Jun 2030 15:00:00 PST, noai"], ["noai"]),
        (["max-image-preview: large, noindex"], ["noindex"]),
        (["otherbot: max-snippet: 5, noai"], []),
        ([":", ",,", "noai:"], []),
    ],
)
def test_directives_count_for_everyone_or_for_our_token(headers, found):
    assert refusals(headers, "clip-data", DIRECTIVES) == found


def test_only_the_configured_directives_count():
    assert refusals(["noai, noindex, nocache"], "clip-data", ("nocache",)) == ["nocache"]
