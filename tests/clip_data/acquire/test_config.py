import re

import pytest

from clip_core.config import from_dict, to_dict
from clip_data.acquire import AcquireConfig
from clip_data.errors import ClipDataError


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_size": 0}, "image_size = 0 must be between 1 and 16383"),
        ({"encode_quality": 101}, "encode_quality = 101 must be between 1 and 100 for encode_format = 'jpg'"),
        ({"encode_format": "png"}, "encode_quality = 95 must be between 0 and 9 for encode_format = 'png'"),
        ({"max_bytes": 0}, "max_bytes = 0 must be"),
        ({"max_pixels": -1}, "max_pixels = -1 must be"),
        ({"connect_timeout": 0.0}, "connect_timeout = 0.0 must be above 0"),
        ({"total_timeout": 1e9}, "total_timeout = 1000000000.0 must be"),
        ({"retries": -1}, "retries = -1 must be"),
        ({"concurrency": 0}, "concurrency = 0 must be"),
        ({"max_aspect_ratio": 0.5}, "max_aspect_ratio = 0.5 must be at least 1, or 0 for no limit"),
        ({"user_agent_token": "two words"}, "user_agent_token = 'two words' must be"),
        ({"opt_out_directives": ("NoAI",)}, "opt_out_directives holds 'NoAI'"),
    ],
)
def test_bad_values_are_named(values, message):
    with pytest.raises(ClipDataError, match=re.escape(message)):
        AcquireConfig(**values)


def test_fields_of_speed_are_not_part_of_the_identity():
    fast = AcquireConfig(concurrency=500, per_host=100, decode_threads=4)
    assert fast.identity() == AcquireConfig().identity()
    assert AcquireConfig(image_size=224).identity() != AcquireConfig().identity()


def test_a_recipe_makes_the_same_config():
    config = AcquireConfig(image_size=224, opt_out_directives=("noai",))
    assert from_dict(AcquireConfig, to_dict(config)) == config
