"""Builds the page from its sections."""

from importlib.resources import files

from clip_eval.config import ReportConfig
from clip_eval.errors import ClipEvalError
from clip_eval.report import SECTIONS
from clip_eval.report.html import Html, fill, foreign, join, note
from clip_eval.report.inputs import Inputs
from clip_eval.results import file_in_store


def write_report(config: ReportConfig) -> str:
    """Writes the page and returns its path. The file gets its name only when it is complete.

    Inputs that do not exist are listed at the foot of the page. Raises ClipEvalError if none exists, and ClipError if
    one is damaged.
    """
    target, file = file_in_store(config.out)
    inputs = Inputs(config)
    sections = [section for name in config.sections if (section := SECTIONS.get(name)(inputs))]
    if not sections:
        raise ClipEvalError(
            f"there is nothing to report on ({', '.join(inputs.absent) or 'no input named'}): "
            "give --dataset, --runs or --evaluation"
        )
    foot = note("Not there yet, and left out: {}.", join(map(foreign, inputs.absent), ", ")) if inputs.absent else ""
    page = fill(
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        "<title>{title}</title><style>{style}</style></head><body><main>"
        '<header><h1>{title}</h1><div class="summary">{cards}</div><nav>{links}</nav></header>'
        "{sections}<footer>{foot}</footer></main></body></html>\n",
        title=config.title,
        style=Html((files("clip_eval.report") / "style.css").read_text(encoding="utf-8")),
        cards=join(card for section in sections for card in section.cards),
        links=join(fill('<a href="#{}">{}</a>', one.name, one.name.capitalize()) for one in sections),
        sections=join(
            fill('<section id="{}"><h2>{}</h2>{}</section>', one.name, one.title, join(one.parts)) for one in sections
        ),
        foot=foot,
    )
    target.write_bytes(file, page.encode("utf-8", "replace"))
    return config.out
