"""Language models: endpoints, the client that asks them, what it costs, and the record of every exchange."""
