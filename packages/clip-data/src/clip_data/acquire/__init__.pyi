from .codes import Code as Code
from .codes import Rejected as Rejected
from .config import AcquireConfig as AcquireConfig
from .fetch import Fetcher as Fetcher
from .fetch import FetchResult as FetchResult
from .image import Picture as Picture
from .image import treat as treat
from .stage import AcquireTask as AcquireTask
