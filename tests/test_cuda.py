"""A GPU through its driver's library: here a driver of a few lines, and none at all."""

import ctypes
from collections.abc import Callable
from ctypes.util import find_library

import numpy as np
import pytest

from ditc.runtime.cuda import CudaDevice, open_device
from ditc.runtime.errors import EngineError


class FakeDriver:
    """Functions of a driver, on host memory; every call is noted."""

    def __init__(self, devices: int = 1, free: int = 10**6, codes: dict[str, int] | None = None):
        self.devices, self.free, self.codes = devices, free, codes or {}
        self.calls: list[str] = []
        self.memory: list[np.ndarray] = []

    def __getattr__(self, name: str) -> Callable[..., int]:
        def call(*arguments: object) -> int:
            self.calls.append(name)
            act = getattr(type(self), f"_{name.lower()}", None)
            if name in self.codes:
                return self.codes[name]
            return 0 if act is None else act(self, *arguments) or 0

        return call

    def _cudevicegetcount(self, count) -> None:
        count._obj.value = self.devices

    def _cudevicegetname(self, text, size, device) -> None:
        text.value = b"Fake RTX"

    def _cudevicegetattribute(self, value, attribute, device) -> None:
        value._obj.value = {75: 12, 76: 0}[attribute]

    def _cudrivergetversion(self, version) -> None:
        version._obj.value = 12040

    def _custreamcreate(self, stream, flags) -> None:
        stream._obj.value = 77

    def _cumemgetinfo_v2(self, free, total) -> None:
        free._obj.value, total._obj.value = self.free, 2 * 10**6

    def _cumemalloc_v2(self, address, size) -> int:
        if size.value > self.free:
            return 2
        self.free -= size.value
        self.memory.append(np.zeros(size.value, np.uint8))
        address._obj.value = self.memory[-1].ctypes.data
        return 0

    def _cumemcpyhtodasync_v2(self, place, source, size, stream) -> None:
        assert stream.value == 77
        ctypes.memmove(place.value, source.value, size.value)

    def _cumemcpydtohasync_v2(self, target, place, size, stream) -> None:
        ctypes.memmove(target.value, place.value, size.value)

    def _cugeterrorstring(self, code, text) -> None:
        text._obj.value = b"an illegal memory access"


def test_what_a_device_says_of_itself() -> None:
    device = CudaDevice(FakeDriver())
    assert (device.name, device.capability, device.driver) == ("Fake RTX", "sm120", (12, 4))
    assert (device.stream, device.used_bytes) == (77, 10**6)


def test_a_gpu_is_described_without_starting_anything_on_it() -> None:
    driver = FakeDriver()
    assert CudaDevice.described(driver) == ("Fake RTX", "sm120")
    assert not [call for call in driver.calls if "Ctx" in call or "Stream" in call]
    with pytest.raises(EngineError, match="there is no GPU 0 here, the driver sees 0"):
        CudaDevice.described(FakeDriver(devices=0))


def test_there_and_back() -> None:
    driver = FakeDriver()
    device = CudaDevice(driver)
    given = np.random.default_rng(5).standard_normal((3, 7)).astype(np.float32)
    address = device.allocate(given.nbytes, "weights")
    device.upload(address, given)
    found = np.empty_like(given)
    device.download(found, address)
    device.synchronize()
    assert np.array_equal(found, given)
    assert driver.calls[-1] == "cuStreamSynchronize"


def test_work_is_recorded_once_and_launched_often() -> None:
    driver, told = FakeDriver(), []
    launch = CudaDevice(driver).record(lambda: told.append(1))
    driver.calls.clear()
    launch()
    launch()
    assert told == [1]
    assert driver.calls == ["cuGraphLaunch", "cuGraphLaunch"]


def test_a_recording_ends_where_its_work_fails() -> None:
    driver = FakeDriver()
    device = CudaDevice(driver)

    def fails() -> None:
        raise EngineError("no")

    with pytest.raises(EngineError, match=r"^no$"):
        device.record(fails)
    assert driver.calls[-1] == "cuStreamEndCapture"


def test_no_room() -> None:
    with pytest.raises(EngineError) as caught:
        CudaDevice(FakeDriver(free=500_000)).allocate(900_000, "weights")
    assert str(caught.value) == (
        "Fake RTX has no room for 0.9 MB of weights: 0.5 of 2.0 MB are free; end what else uses "
        "it, or compile for smaller batches or with --max-slot-bytes"
    )


@pytest.mark.parametrize(
    ("driver", "index"), [(FakeDriver(codes={"cuInit": 100}), 0), (FakeDriver(devices=2), 2)]
)
def test_no_such_gpu(driver: FakeDriver, index: int) -> None:
    with pytest.raises(EngineError, match=rf"^there is no GPU {index} here, the driver sees "):
        CudaDevice(driver, index)


def test_a_call_that_fails() -> None:
    device = CudaDevice(FakeDriver(codes={"cuStreamSynchronize": 700}))
    with pytest.raises(EngineError) as caught:
        device.synchronize()
    assert str(caught.value) == (
        "cuStreamSynchronize failed with CUDA error 700: an illegal memory access; check the "
        "GPU's driver"
    )


@pytest.mark.skipif(find_library("cuda") is not None, reason="needs a machine without a driver")
def test_no_driver() -> None:
    with pytest.raises(EngineError, match=r"^there is no NVIDIA driver here \(libcuda"):
        open_device()
