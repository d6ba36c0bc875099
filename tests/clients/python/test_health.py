"""grpc.health.v1: the server as a whole, each model by its name, and Watch."""

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

PATIENCE_S = 30
KNOWN = ["", "early-signal", "sconce.v1.Inference", "inference.GRPCInferenceService"]


@pytest.fixture(scope="module")
def health(channel):
    return HealthStub(channel)


@pytest.mark.parametrize("service", KNOWN)
def test_check_says_serving(health, service):
    answer = health.Check(HealthCheckRequest(service=service), timeout=PATIENCE_S)
    assert answer.status == HealthCheckResponse.SERVING


def test_check_of_an_unknown_name_is_not_found(health):
    with pytest.raises(grpc.RpcError) as raised:
        health.Check(HealthCheckRequest(service="no-such-model"), timeout=PATIENCE_S)
    assert raised.value.code() == grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("service", KNOWN)
def test_watch_says_at_once_how_things_stand(health, service):
    watch = health.Watch(HealthCheckRequest(service=service), timeout=PATIENCE_S)
    assert next(watch).status == HealthCheckResponse.SERVING
    watch.cancel()


def test_watch_of_an_unknown_name_stays_open(health):
    """A model that is not there yet may come; the watch must not end with an error."""
    watch = health.Watch(HealthCheckRequest(service="no-such-model"), timeout=PATIENCE_S)
    assert next(watch).status == HealthCheckResponse.SERVICE_UNKNOWN
    assert watch.is_active()
    watch.cancel()


def test_admin_port_answers_health_too(admin_channel):
    answer = HealthStub(admin_channel).Check(HealthCheckRequest(), timeout=PATIENCE_S)
    assert answer.status == HealthCheckResponse.SERVING
