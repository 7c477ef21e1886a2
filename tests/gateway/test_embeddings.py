"""No model here has embeddings, and whoever asks is told by name."""

import json

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.gateway.bodies import JSON
from tests.gateway.stage import MODEL, Stage

from sublet.gateway.embeddings import refuse
from sublet.gateway.failures import Failure
from sublet.gateway.table import Table


@pytest.mark.parametrize("model", [MODEL, "nobody"])
def test_a_model_without_embeddings_is_refused_by_name_and_costs_nothing(
    stage: Stage, model: str
) -> None:
    tenant, key = stage.tenant()
    with pytest.raises(openai.APIStatusError) as refused:
        stage.client(key, retries=3).embeddings.create(model=model, input="a text")
    assert refused.value.status_code == (400 if model == MODEL else 404)
    assert refused.value.param == "model"
    assert repr(model) in refused.value.message
    stage.paid(tenant, 0)


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_whatever_is_sent_is_refused_in_good_form(body: bytes) -> None:
    with pytest.raises(Failure) as refused:
        refuse(body, Table())
    assert refused.value.status in {400, 404}


def test_a_body_that_can_be_is_read_to_its_model() -> None:
    for given_input in ("a", ["a", "b"], [1, 2], [[1], [2, 3]]):
        body = {"model": "m", "input": given_input, "encoding_format": "base64", "user": "u"}
        with pytest.raises(Failure, match="The model 'm' does not exist"):
            refuse(json.dumps(body).encode(), Table())
