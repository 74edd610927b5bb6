from .caption import CaptionScorer as CaptionScorer
from .image import ImageScorer as ImageScorer
from .scorer import SCORERS as SCORERS
from .scorer import Batch as Batch
from .scorer import Scorer as Scorer
from .scorer import get_scorer as get_scorer
from .stage import ScoreStage as ScoreStage
