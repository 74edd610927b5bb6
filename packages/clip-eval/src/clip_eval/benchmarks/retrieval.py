"""Image-text retrieval: captions are ranked for each image, and images for each caption."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from heapq import nsmallest
from typing import TYPE_CHECKING, Any

from clip_eval.benchmarks import BenchmarkConfig, Outcome
from clip_eval.errors import ClipEvalError

if TYPE_CHECKING:
    import numpy as np

    from clip_eval.features import Embedder, ImageFeatures
    from clip_eval.metrics import Retrieval

RECALL_AT = (1, 5, 10)
EXAMPLES = 8


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig(BenchmarkConfig):
    """Image-text retrieval in both directions."""

    def measure(self, images: ImageFeatures, embedder: Embedder, data: Any) -> Outcome:
        """Returns image_to_text_recall@k and text_to_image_recall@k for k = 1, 5, 10.

        Pairs are decided by identity, not by row: rows whose images have the same bytes (SHA-256) are one image, rows
        with the same caption are one text, and an image and a text are a positive pair when any row holds both. So
        every distinct image and every distinct text is one query and one candidate. Rows without a caption are left
        out. Raises ClipEvalError when no row is left.
        """
        import numpy as np

        from clip_eval.metrics import proportion, rank_candidates, recall_chance

        strings = images.strings
        kept = np.asarray([i for i, caption in enumerate(strings["caption"]) if caption.strip()], np.int64)
        if not len(kept):
            raise ClipEvalError(f"benchmark {self.name!r}: none of its {len(strings['caption'])} samples has a caption")
        identities = [strings["sha256"][i] or strings["uid"][i] for i in kept]
        image_names, image_row, image_of_row = np.unique(identities, return_index=True, return_inverse=True)
        captions, text_of_row = np.unique(np.asarray(strings["caption"], dtype=object)[kept], return_inverse=True)
        texts = embedder.texts(captions.tolist(), precision=self.precision, batch_size=self.batch_size)
        pairs = np.unique(np.stack([image_of_row, text_of_row]), axis=1).astype(np.int64)
        image_row = kept[image_row]
        features = images.features[image_row]
        to_text = rank_candidates(features, texts.features, (pairs[0], pairs[1]))
        to_image = rank_candidates(texts.features, features, (pairs[1], pairs[0]))
        keys = [strings["key"][row] for row in image_row]
        return Outcome(
            metrics=[
                proportion(f"{name}_recall@{k}", found.rank < k, recall_chance(found.positives, candidates, k))
                for name, found, candidates in (
                    ("image_to_text", to_text, len(captions)),
                    ("text_to_image", to_image, len(image_names)),
                )
                for k in RECALL_AT
            ],
            counts={
                "truncated": texts.truncated,
                "uncaptioned": len(strings["caption"]) - len(kept),
                "rows": len(text_of_row),
                "images": len(image_names),
                "texts": len(captions),
            },
            details={
                "image_to_text": _examples(to_text, list(image_names), keys, captions.tolist(), pairs),
                "text_to_image": _examples(to_image, captions.tolist(), captions.tolist(), keys, pairs[::-1]),
            },
        )


def _examples(
    found: Retrieval, names: list[str], queries: list[str], candidates: list[str], pairs: np.ndarray
) -> list[dict[str, Any]]:
    """Returns queries with their best candidates, chosen by the hash of their name and not by their rank."""
    hashed = [hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest() for name in names]
    examples = []
    for query in nsmallest(EXAMPLES, range(len(hashed)), hashed.__getitem__):
        positives = set(pairs[1][pairs[0] == query].tolist())
        examples.append(
            {
                "query": queries[query],
                "rank": int(found.rank[query]),
                "best": candidates[found.best[query]],
                "top": [{"candidate": candidates[i], "positive": i in positives} for i in found.top[query].tolist()],
            }
        )
    return examples
