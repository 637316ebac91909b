"""Try, Confirm, Cancel: the protocol, the coordinator and the API. Knows no resource by name."""
