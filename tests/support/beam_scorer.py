"""The part of transformers' former `BeamSearchScorer` that OpenCLIP's CoCa calls; transformers 5 has it no more.

It keeps the finished captions of each group of beams and tells how the unfinished ones go on. A finished caption scores
its sum over its length, the end token included.
"""

from types import SimpleNamespace

import torch
from torch import Tensor


class BeamScorer:
    def __init__(self, batch_size: int, num_beams: int, device: torch.device | str, num_beam_groups: int = 1) -> None:
        self.num_beams, self.num_beam_groups = num_beams, num_beam_groups
        self.group_size = num_beams // num_beam_groups
        self._beam_hyps = [[] for _ in range(batch_size * num_beam_groups)]
        self.done = [False] * len(self._beam_hyps)

    @property
    def is_done(self) -> bool:
        return all(self.done)

    def keep(self, slot: int, score: float, tokens: Tensor) -> None:
        best = self._beam_hyps[slot]
        if len(best) < self.group_size or score > min(best, key=lambda entry: entry[0])[0]:
            best.append((score, tokens))
        if len(best) > self.group_size:
            best.pop(min(range(len(best)), key=lambda index: best[index][0]))

    def process(
        self, input_ids, scores, tokens, indices, *, pad_token_id, eos_token_id, beam_indices, group_index
    ) -> dict[str, Tensor]:
        size, length = self.group_size, input_ids.shape[1] + 1
        next_scores = torch.zeros(len(scores), size)
        next_tokens = torch.full((len(scores), size), int(pad_token_id))
        next_rows = torch.zeros(len(scores), size, dtype=torch.int64)
        for sample in range(len(scores)):
            slot = sample * self.num_beam_groups + group_index
            if self.done[slot]:
                continue
            open_beams = 0
            for rank in range(2 * size):
                row = sample * size + int(indices[sample, rank])
                if int(tokens[sample, rank]) == int(eos_token_id):
                    if rank < size:
                        self.keep(slot, scores[sample, rank].item() / length, input_ids[row].clone())
                    continue
                next_scores[sample, open_beams] = scores[sample, rank]
                next_tokens[sample, open_beams] = tokens[sample, rank]
                next_rows[sample, open_beams] = row
                open_beams += 1
                if open_beams == size:
                    break
            best = self._beam_hyps[slot]
            worst = min((score for score, _ in best), default=0.0)
            self.done[slot] = len(best) == size and worst >= scores[sample].max().item() / length
        return {
            "next_beam_scores": next_scores.flatten(),
            "next_beam_tokens": next_tokens.flatten(),
            "next_beam_indices": next_rows.flatten(),
        }

    def finalize(self, input_ids, beam_scores, *_, pad_token_id, eos_token_id, max_length, **__) -> dict[str, Tensor]:
        for slot, done in enumerate(self.done):
            for row in () if done else range(slot * self.group_size, (slot + 1) * self.group_size):
                self.keep(slot, beam_scores[row].item() / input_ids.shape[1], input_ids[row])
        groups = self.num_beam_groups
        captions = []
        for first in range(0, len(self._beam_hyps), groups):
            entries = [entry for slot in self._beam_hyps[first : first + groups] for entry in slot]
            captions.append(sorted(entries, key=lambda entry: entry[0])[-1][1])
        longest = min(max(map(len, captions)) + 1, max_length)
        sequences = input_ids.new_full((len(captions), longest), int(pad_token_id))
        for caption, row in zip(captions, sequences, strict=True):
            row[: len(caption)] = caption
            if len(caption) < longest:
                row[len(caption)] = int(eos_token_id)
        return SimpleNamespace(sequences=sequences).__dict__


def lend_generation(coca_model) -> None:
    """Gives the module open_clip.coca_model what its `generate` imports from transformers, and the scorer."""
    import transformers
    from transformers.generation import stopping_criteria

    for name in (
        "LogitsProcessorList", "TopPLogitsWarper", "TopKLogitsWarper", "RepetitionPenaltyLogitsProcessor",
        "MinLengthLogitsProcessor",
    ):  # fmt: skip
        setattr(coca_model, name, getattr(transformers, name))
    for name in ("MaxLengthCriteria", "StoppingCriteriaList"):
        setattr(coca_model, name, getattr(stopping_criteria, name))
    coca_model.GENERATION_TYPES |= {"top_k": transformers.TopKLogitsWarper, "top_p": transformers.TopPLogitsWarper}
    coca_model.BeamSearchScorer = BeamScorer
    coca_model._has_transformers = True
