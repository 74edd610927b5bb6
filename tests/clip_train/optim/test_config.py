import subprocess
import sys

import pytest

from clip_core import ClipError
from clip_core.config import from_dict, to_dict
from clip_train.optim.config import OptimConfig, check_optim


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ({"name": "adamv"}, "there is no optimizer 'adamv'; did you mean 'adamw'?"),
        ({"schedule": "cosin"}, "there is no schedule 'cosin'; did you mean 'cosine'?"),
        ({"lr": 0.0}, "optim.lr = 0.0 must be above 0"),
        ({"final": 1.5}, "optim.final = 1.5"),
        ({"agc": -1.0}, "optim.agc = -1.0"),
        ({"rates": {"visual.*": 0.0}}, "optim.rates.'visual.*' = 0.0"),
        ({"image_layer_decay": 1.5}, "optim.image_layer_decay = 1.5"),
        ({"ema": {"decay": 1.0}}, "optim.ema.decay = 1.0"),
        ({"ema": {"every": 0}}, "optim.ema.every = 0"),
        ({"spike": {"loss": 0.5}}, "optim.spike.loss = 0.5 must be above 1"),
        ({"name": "muon", "options": {"nestrov": True}}, "optim.options.nestrov: the optimizer 'muon' has no such"),
        ({"name": "muon", "options": {"nestrov": True}}, "did you mean nesterov?"),
        ({"options": {"eps": 1e-8}}, "set optim.eps"),
        ({"fallback": ["text_projection"]}, "optim.fallback is for muon, not for optim.name = 'adamw'"),
        ({"schedule": "wsd"}, "set optim.cooldown"),
        ({"cooldown": 5}, "optim.cooldown = 5 is for the schedules wsd and rsqrt, not for 'cosine'"),
        ({"name": "adamw-schedulefree"}, "set optim.schedule = 'constant', not 'cosine'"),
        ({"grad_clip": {"imag": 1.0}}, "optim.grad_clip.imag names no tower; did you mean image?"),
        ({"grad_clip": {"image": 1.0}, "agc": 0.1}, "clip the gradient twice"),
        ({"grad_clip": {"image": 0.0}}, "optim.grad_clip.image = 0.0"),
    ],
)
def test_values_that_do_not_fit_are_named(table, named):
    with pytest.raises(ClipError) as error:
        check_optim(from_dict(OptimConfig, table))
    assert named in str(error.value)


def test_a_config_survives_json():
    table = {"options": {"nesterov": True}, "warmup": "5%", "rates": {"visual.*": 0.1}, "ema": {"decay": 0.9}}
    config = from_dict(OptimConfig, {"name": "muon", **table})
    check_optim(config)
    assert from_dict(OptimConfig, to_dict(config)) == config


def test_the_checks_do_without_torch():
    code = (
        "import sys; from clip_train.optim.config import OptimConfig, check_optim;"
        "check_optim(OptimConfig(name='lamb', options={'trust_clip': True}));"
        "print(sorted({'torch', 'timm', 'schedulefree'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
