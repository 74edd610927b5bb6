from .base import EXECUTORS as EXECUTORS
from .base import Executor as Executor
from .base import ExecutorConfig as ExecutorConfig
from .base import Outcome as Outcome
from .base import Task as Task
from .base import make_executor as make_executor
from .local import LocalExecutor as LocalExecutor
