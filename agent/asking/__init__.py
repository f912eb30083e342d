"""Other engineers, people and coding agents: a prompt goes out as an ask, a reply comes back whenever it is ready."""
