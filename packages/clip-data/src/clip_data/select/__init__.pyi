from .config import SelectConfig as SelectConfig
from .expression import Clause as Clause
from .expression import parse_where as parse_where
from .reader import Selection as Selection
from .reader import load_selection as load_selection
from .stage import select as select
