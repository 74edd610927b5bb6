from .codes import Code as Code
from .codes import Rejected as Rejected
from .config import AcquireConfig as AcquireConfig
from .fetch import Fetcher as Fetcher
from .fetch import FetchResult as FetchResult
from .image import PreparedImage as PreparedImage
from .image import prepare_image as prepare_image
from .stage import AcquireStage as AcquireStage
