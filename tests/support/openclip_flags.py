"""The docs' table of OpenCLIP's flags, made from openclip_flags.toml: python -m tests.support.openclip_flags."""

from pathlib import Path

from clip_train.convert import flag_table

PAGE = Path(__file__).parents[2] / "packages" / "clip-train" / "docs" / "openclip_flags.md"
HEAD = """\
# OpenCLIP's training flags

Where each flag of `open_clip_train.main` goes in a recipe, or why it has no key. `clip-train convert-openclip-args`
turns a command line into a recipe by this table. Flags with a * are in OpenCLIP's development line, not in release 3.3.

| flag | key | remark |
|---|---|---|
"""


def page() -> str:
    rows = []
    for name, about in flag_table().items():
        key = f"`{about['key']}`" if "key" in about else "–"
        star = "*" if about.get("dev") else ""
        rows.append(f"| `--{name}`{star} | {key} | {about.get('why', '')} |\n")
    return HEAD + "".join(rows)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
