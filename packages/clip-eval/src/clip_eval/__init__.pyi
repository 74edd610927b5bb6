from .config import EvalConfig as EvalConfig
from .config import ReportConfig as ReportConfig
from .config import TaskConfig as TaskConfig
from .errors import ClipEvalError as ClipEvalError
from .evaluation import evaluate as evaluate
from .leakage import refuse_training_samples as refuse_training_samples
from .report import write_report as write_report
from .results import format_table as format_table
