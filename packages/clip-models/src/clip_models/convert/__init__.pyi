from .folders import save_huggingface as save_huggingface
from .folders import save_open_clip as save_open_clip
from .huggingface import from_huggingface as from_huggingface
from .huggingface import spec_from_huggingface as spec_from_huggingface
from .huggingface import to_huggingface as to_huggingface
