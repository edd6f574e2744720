import datetime

import pytest

from landmarks.running import command
from landmarks.training import rates


def test_every_rate_is_dated_and_says_what_it_is_from():
    for name, device in rates.names().items():
        for one in [*device.passes.values(), *dict(device.rates).values()]:
            assert one.date <= datetime.date.today() + datetime.timedelta(days=1), name
            assert len(one.source) > 5


def test_a_backbone_that_is_not_there_runs_like_the_first():
    device = rates.device("cpu")
    first = next(iter(device.passes))
    assert device.pass_of("ResNet50") == ("ResNet50", device.passes["ResNet50"])
    assert device.pass_of("VGG16") == (first, device.passes[first])


def test_an_unknown_device_is_named_with_those_that_there_are():
    with pytest.raises(command.InputError, match=r"--device h10: rates are known of .*cpu.* \(did you mean h100\?\)"):
        rates.device("h10")


def test_one_that_is_twice_as_fast():
    device = rates.device("cpu")
    twice = device.times(2)
    assert {name: one.value / 2 for name, one in twice.rates} == {name: one.value for name, one in device.rates}
    assert twice.passes == device.passes and twice.cores == device.cores
