"""Figures of retrieval: the best answers for some images and captions."""

from typing import Any

from clip_eval.report.html import Html, fill, foreign, gallery, join, note
from clip_eval.report.images import Images


def figures(details: dict[str, Any], images: Images | None) -> list[Html]:
    """Returns the figures of a retrieval benchmark."""
    if images is None:
        return [note("The dataset {} does not exist: no images are shown.", foreign(details["dataset"]))]
    to_text = [
        fill('<div class="query">{}<ol>{}</ol></div>', images.thumbnail(example["query"]), join(_answers(example)))
        for example in details["image_to_text"]
    ]
    to_image = []
    for example in details["text_to_image"]:
        query = foreign(example["query"], 140)
        rank = fill(" <small>first match at rank {}</small>", example["rank"] + 1)
        found = [(_tone(one), images.thumbnail(one["candidate"])) for one in example["top"]]
        best = join(fill('<span class="{}">{}</span>', *one) for one in found)
        to_image.append(fill('<div class="answers"><p>{}{}</p><div>{}</div></div>', query, rank, best))
    return [
        gallery("From an image to its captions: the five best", to_text, "queries"),
        gallery("From a caption to its images: the five best", to_image, "queries"),
    ]


def _tone(found: dict[str, Any]) -> str:
    return "hit" if found["positive"] else ""


def _answers(example: dict[str, Any]) -> list[Html]:
    """Returns the best captions, and the right one with its rank if it is not among them."""
    top = example["top"]
    answers = [fill('<li class="{}">{}</li>', _tone(found), foreign(found["candidate"], 110)) for found in top]
    if not any(found["positive"] for found in top):
        best = foreign(example["best"], 110)
        answers.append(fill('<li class="missed" value="{}">{}</li>', example["rank"] + 1, best))
    return answers
