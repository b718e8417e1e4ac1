"""The HTTP contract: routes, schemas, authentication, errors. Imports fastapi, never ray."""
