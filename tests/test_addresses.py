"""Addresses: who is connected to, and what is said where nothing listens."""

import io
import socket

import pytest

from auto_deeplab_tf.addresses import check_listens


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("localhost:6379", ("localhost", 6379)),
        ("grpc://10.0.0.7:5050", ("10.0.0.7", 5050)),
        ("[::1]:6379", ("::1", 6379)),
        ("grpc://[fe80::1]:5050", ("fe80::1", 5050)),
    ],
)
def test_host_and_port_are_those_of_the_address(monkeypatch, address, expected):
    asked = []

    def connect(found, timeout):
        asked.append(found)
        return io.BytesIO()

    monkeypatch.setattr(socket, "create_connection", connect)
    check_listens("data_service", address, "dispatcher")
    assert asked == [expected]


@pytest.mark.parametrize("address", ["[::1]:1", "[::1]", "127.0.0.1:1"])
def test_an_address_where_nothing_listens_is_named_as_it_came(address):
    with pytest.raises(ValueError) as error:
        check_listens("data_service", address, "dispatcher")
    assert str(error.value).startswith(f"data_service={address}: no dispatcher listens there (")
