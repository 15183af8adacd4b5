"""Who may do what: identities, credentials, rules. Stands on ipc alone; no grpc, no pydantic, no database."""
