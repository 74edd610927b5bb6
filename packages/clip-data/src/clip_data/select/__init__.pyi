from .build import select as select
from .config import SelectConfig as SelectConfig
from .expression import Clause as Clause
from .expression import parse_where as parse_where
from .selection import Selection as Selection
from .selection import load_selection as load_selection
