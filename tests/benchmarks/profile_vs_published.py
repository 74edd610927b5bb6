"""Parameters and FLOPs of every architecture against OpenCLIP's published table of model profiles.

uv run tests/benchmarks/profile_vs_published.py path/to/model_profile.csv

Native families must agree: parameters to the last printed digit, FLOPs within 1 %. Towers of transformers are shown
but not judged: the published figures of some were counted at the library's default length, not at the model's.
"""

import csv
import sys
from pathlib import Path

from clip_models import HFTextConfig, get_model_spec, list_models
from clip_models.inference.profiling import profile

PARAMETERS = ("mparams", "image_mparams", "text_mparams")
FLOPS = ("gflops", "image_gflops", "text_gflops")


def disagreements(published: dict[str, str]) -> list[str]:
    """What differs between a row of the table and our profile of the same architecture."""
    ours = profile(published["model"])
    found = [
        f"{key} {getattr(ours, key):.2f}, published {published[key]}"
        for key in PARAMETERS
        if round(getattr(ours, key), 2) != float(published[key])
    ]
    return found + [
        f"{key} {getattr(ours, key):.2f}, published {published[key]}"
        for key in FLOPS
        if abs(getattr(ours, key) / float(published[key]) - 1) > 0.01
    ]


def main() -> None:
    rows = list(csv.DictReader(Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()))
    known = set(list_models())
    agree, judged, shown = 0, 0, 0
    for row in rows:
        if row["model"] not in known:
            print(f"{row['model']}: not an architecture here")
            continue
        found = disagreements(row)
        if isinstance(get_model_spec(row["model"]).text, HFTextConfig):
            shown += 1
            print(f"{row['model']} (not judged): {'; '.join(found) or 'agrees'}")
            continue
        judged += 1
        agree += not found
        if found:
            print(f"{row['model']}: {'; '.join(found)}")
    print(f"{agree} of {judged} native architectures agree; {shown} with a text tower of transformers were not judged")
    sys.exit(agree != judged)


if __name__ == "__main__":
    main()
