"""Opens images: public names of clip-core that this package has too."""

from clip_core.errors import ImageError as ImageError
from clip_core.images import load_image as load_image
