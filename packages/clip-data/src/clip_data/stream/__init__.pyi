from .loader import OnceReader as OnceReader
from .loader import SampleStream as SampleStream
from .loader import read_once as read_once
from .manifest import Manifest as Manifest
from .manifest import build_manifest as build_manifest
from .overlap import refuse_overlap as refuse_overlap
from .source import Source as Source
