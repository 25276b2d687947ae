"""What goes wrong around a fleet's plan: whose fault it is is said, and the others go on."""

from fedofa.server.fleet_plan import artifact_name
from toy_search import ALL


def test_runs_that_share_a_registry_publish_the_same_subnet_for_classes_of_their_own() -> None:
    kind = "onnx_int8"
    names = {artifact_name(run, kind, ALL[0]) for run in ("one", "two", "two.branch")}
    assert len(names) == 3
    assert artifact_name("one", kind, ALL[0]) in names
    assert artifact_name("one", kind, ALL[1]) not in names
