"""schemathesis throws what the OpenAPI document allows, and what it forbids, at the API."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from tests.e2e.instance import Instance

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("role", ["operator_key", "tenant_key"])
def test_no_request_makes_the_api_fail(instance: Instance, role: str) -> None:
    schema = schemathesis.openapi.from_url(instance.ready["api_url"] + "/openapi.json")
    headers = {"Authorization": f"Bearer {instance.ready[role]}"}
    operations = list(schema.get_all_operations())
    assert len(operations) > 25
    for operation in operations:

        @settings(
            max_examples=12, deadline=None, database=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(case=operation.ok().as_strategy())
        def one(case: schemathesis.Case) -> None:
            case.call_and_validate(headers=headers, checks=[not_a_server_error], timeout=40)

        one()
    instance.verify()
