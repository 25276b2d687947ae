"""The widths that a device states: in its profile file or description, to the server, in training."""

import json
from pathlib import Path
from typing import get_args

import pytest
from fedofa.client.declared import read_profile
from fedofa.client.device import declared
from fedofa.client.tasks import run_profile, run_train
from fedofa.protos.device import DataSource, Device
from fedofa.protos.messages import (
    DeviceProfile,
    MessageError,
    ProfileRequest,
    TrainRequest,
    tensor_shapes,
)
from fedofa.protos.recipe import Recipe
from fedofa.supernet.axes import regions
from fedofa.supernet.errors import UsageError
from fedofa.supernet.precision import ALLOWED, Bits
from fedofa.supernet.space import plain
from fedofa.supernet.weights import gather, initial, shapes_of, split
from fleets import SPEEDS
from strategies import DIGITS

ALONE = DataSource("fedofa.client.datasets:digits")
SMALLEST, HEAD = DIGITS.smallest(), "head.classifier.weight"


def profile_file(folder: Path, text: str = "") -> str:
    path = folder / "device.toml"
    path.write_text(SPEEDS + text)
    return str(path)


def test_a_profile_file_states_the_widths_and_32_where_it_does_not(tmp_path: Path) -> None:
    found = read_profile(Path(profile_file(tmp_path, "train_bits = 2\ninfer_bits = 8\n")))
    assert (found.train_bits, found.infer_bits) == (2, 8)
    found = read_profile(Path(profile_file(tmp_path)))
    assert (found.train_bits, found.infer_bits) == (32, 32)


@pytest.mark.parametrize("value", ["3", "16", "0", "8.5", "'8'", "[8]"])
@pytest.mark.parametrize("field", ["train_bits", "infer_bits"])
def test_another_width_in_a_profile_file_is_refused_by_field_and_value(
    tmp_path: Path, field: str, value: str
) -> None:
    path = profile_file(tmp_path, f"{field} = {value}\n")
    with pytest.raises(UsageError) as error:
        read_profile(Path(path))
    for words in (path, f"{field} = {value}", "32, 8, 4 or 2"):
        assert words in str(error.value), error.value


def test_a_devices_own_widths_travel_with_it_and_count_more_than_its_files(tmp_path: Path) -> None:
    path = profile_file(tmp_path, "train_bits = 4\ninfer_bits = 4\n")
    device = Device("d", ALONE, "phone", path, train_bits=2)
    assert Device.from_json(device.to_json()) == device
    told = declared(device)
    assert (told.train_bits, told.infer_bits, told.memory_bytes) == (2, 4, 10**9)
    assert declared(Device("d", ALONE)).train_bits == 32


def test_another_width_in_a_devices_description_is_refused() -> None:
    with pytest.raises(UsageError, match="device d: infer_bits = 3; allowed: 32, 8, 4, 2"):
        Device("d", ALONE, infer_bits=3)  # type: ignore[arg-type]
    text = Device("d", ALONE, train_bits=8).to_json().replace('"train_bits": 8', '"train_bits": 7')
    with pytest.raises(UsageError, match="train_bits = 7"):
        Device.from_json(text)


def test_the_server_is_told_the_widths_and_refuses_others(tmp_path: Path) -> None:
    path = profile_file(tmp_path, "train_bits = 2\ninfer_bits = 4\n")
    request = ProfileRequest(space=plain(DIGITS.to_dict()))
    found = run_profile(Device("d", ALONE, "phone", path), request, None)
    assert (found.train_bits, found.infer_bits) == (2, 4)
    assert DeviceProfile.from_json(found.to_json()) == found
    fields = json.loads(found.to_json())
    for wrong in (3, 8.5, "8", True, None):
        with pytest.raises(MessageError, match="train_bits"):
            DeviceProfile.from_json(json.dumps({**fields, "train_bits": wrong}))
    del fields["train_bits"], fields["infer_bits"]  # a device of before
    assert DeviceProfile.from_json(json.dumps(fields)).train_bits == 32


def test_a_device_trains_in_the_width_that_it_states(tmp_path: Path) -> None:
    where = regions(DIGITS, SMALLEST)
    shapes, sent = shapes_of(where), gather(initial(DIGITS, 0), where)
    request = TrainRequest(
        run="r", round=1, seed=0, lr=0.1, deadline_s=9.0, space=plain(DIGITS.to_dict()),
        arch=dict(SMALLEST), recipe=Recipe(steps=2), tensors=tensor_shapes(shapes),
    )  # fmt: skip
    for bits, levels in ((2, 3), (4, 15), (32, 16)):
        path = profile_file(tmp_path, f"train_bits = {bits}\n")
        _, returned = run_train(Device("d", ALONE, "phone", path), request, sent)
        head = split(returned, shapes)[HEAD]  # type: ignore[arg-type]
        most = max(len(set(channel.tolist())) for channel in head.flatten(1))
        assert (most <= levels) == (bits != 32)


def test_the_allowed_widths_are_those_of_the_messages() -> None:
    assert get_args(Bits) == ALLOWED == (32, 8, 4, 2)
