from .errors import ClipEvalError as ClipEvalError
from .evaluation import EvalConfig as EvalConfig
from .evaluation import evaluate as evaluate
from .leakage import refuse_training_samples as refuse_training_samples
from .report import ReportConfig as ReportConfig
from .report import write_report as write_report
from .results import format_table as format_table
from .tasks import TaskConfig as TaskConfig
