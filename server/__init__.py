"""The operator: assignment, aggregation, Flower strategy, registry, depot, command line."""
